"""clf8: a small classifier of 8 x 8 Fashion-MNIST, whose features measure samples."""

from papertrial.models.classifiers import SampleJudge, network, passes, train

__all__ = ["SampleJudge", "network", "passes", "train"]
