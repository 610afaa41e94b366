"""clf16: a small classifier of 16 x 16 Fashion-MNIST, whose features measure samples."""

from papertrial.models.classifiers import SampleJudge, network, passes, train

__all__ = ["SampleJudge", "network", "passes", "train"]
