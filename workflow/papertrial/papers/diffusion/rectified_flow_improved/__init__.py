"""Improving the Training of Rectified Flows (2405.20320)."""
