"""scikit-learn's parameter protocol, without importing scikit-learn: ``clone`` and ``set_params`` work."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from dpaudit.privacy.errors import InvalidValue

Self = TypeVar("Self", bound="Parameters")


class Parameters:
    """Keyword-only ``__init__`` arguments are the parameters; learned values end in an underscore."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, as given."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        return {name: getattr(self, name) for name in names if name not in ("args", "kwargs")}

    def set_params(self: Self, **params: Any) -> Self:
        """Set parameters by name."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise InvalidValue(
                    f"{name}={value!r} is no parameter of {type(self).__name__}; it has {', '.join(known) or 'none'}."
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({shown})"


def check_fitted(estimator: Parameters, attribute: str) -> None:
    """Refuse to score before ``fit``."""
    if not hasattr(estimator, attribute):
        raise InvalidValue(f"{type(estimator).__name__} is not fitted; call fit before score_samples.")
