"""The small tables that come with scikit-learn: `data: {type: scikit.ScikitLearn, args: {name: diabetes}}`."""

from __future__ import annotations

from typing import Literal

from src.data.frame import FrameDataset, Scaling
from src.utils.errors import ConfigError


class ScikitLearn(FrameDataset):
    """A table that scikit-learn ships. See `FrameDataset` for what a sample is.

    Args:
        name: `diabetes` (442 rows, 10 features, a number to predict), `iris` (150 x 4, 3 classes),
            `wine` (178 x 13, 3 classes) or `breast_cancer` (569 x 30, 2 classes).
        scale_inputs: scikit-learn preprocessing of the features, by name or as `{type, args}`.
        scale_target: scikit-learn preprocessing of the target of diabetes, undone in predictions.
    """

    def __init__(
        self,
        name: Literal["diabetes", "iris", "wine", "breast_cancer"],
        scale_inputs: Scaling = None,
        scale_target: Scaling = None,
    ) -> None:
        from sklearn import datasets

        known = ("diabetes", "iris", "wine", "breast_cancer")
        if name not in known:
            raise ConfigError(f"ScikitLearn name: {name!r}; there are {', '.join(known)}")
        bunch = getattr(datasets, f"load_{name}")(as_frame=True)
        is_class = name != "diabetes"
        super().__init__(
            bunch.frame, name, "target", scale_inputs=scale_inputs, scale_target=scale_target, classify=is_class
        )
        if is_class:
            self.class_names = [str(each) for each in bunch.target_names]
