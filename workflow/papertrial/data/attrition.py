"""Attrition: does an employee leave the firm? Made up by IBM, yet widely used as if it were real.

Arrays:
    numeric (1470, 16) float64      columns NUMERIC
    categorical (1470, 14) int64    columns CATEGORICAL; place among the column's values (ordered ones ascend)
    label (1470,) int64             1: leaves (237)

Origin: IBM Watson Analytics' sample set, through the R package modeldata (`attrition`). Licence: MIT (the package).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data import modeldata
from papertrial.data.tables import code, codes, numbers

LEVELS = ("Low", "Medium", "High", "Very_High")
NUMERIC = {  # name: a public range
    "Age": (18, 60),  # years
    "DailyRate": (0, 1_500),
    "DistanceFromHome": (0, 30),  # miles
    "HourlyRate": (30, 100),
    "JobLevel": (1, 5),
    "MonthlyIncome": (1_000, 20_000),
    "MonthlyRate": (2_000, 27_000),
    "NumCompaniesWorked": (0, 10),
    "PercentSalaryHike": (0, 25),
    "StockOptionLevel": (0, 3),
    "TotalWorkingYears": (0, 40),
    "TrainingTimesLastYear": (0, 6),
    "YearsAtCompany": (0, 40),
    "YearsInCurrentRole": (0, 20),
    "YearsSinceLastPromotion": (0, 15),
    "YearsWithCurrManager": (0, 20),
}
CATEGORICAL = {
    "BusinessTravel": ("Non-Travel", "Travel_Rarely", "Travel_Frequently"),
    "Department": ("Human_Resources", "Research_Development", "Sales"),
    "Education": ("Below_College", "College", "Bachelor", "Master", "Doctor"),
    "EducationField": ("Human_Resources", "Life_Sciences", "Marketing", "Medical", "Other", "Technical_Degree"),
    "EnvironmentSatisfaction": LEVELS,
    "Gender": ("Female", "Male"),
    "JobInvolvement": LEVELS,
    "JobRole": (
        "Healthcare_Representative", "Human_Resources", "Laboratory_Technician", "Manager", "Manufacturing_Director",
        "Research_Director", "Research_Scientist", "Sales_Executive", "Sales_Representative",
    ),
    "JobSatisfaction": LEVELS,
    "MaritalStatus": ("Divorced", "Married", "Single"),
    "OverTime": ("No", "Yes"),
    "PerformanceRating": ("Low", "Good", "Excellent", "Outstanding"),
    "RelationshipSatisfaction": LEVELS,
    "WorkLifeBalance": ("Bad", "Good", "Better", "Best"),
}  # fmt: skip
LABEL = ("No", "Yes")

SOURCES = modeldata.SOURCES


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    table = modeldata.frame(files, "attrition")
    return {
        "numeric": numbers(table, NUMERIC),
        "categorical": codes(table, CATEGORICAL),
        "label": code("Attrition", table["Attrition"], LABEL),
    }
