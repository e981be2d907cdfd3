"""accelerate keeps its state in the process, so a second run in one test process would share that of the first."""

from accelerate.state import AcceleratorState, GradientState


def fresh() -> None:
    """Forget the state, as a new process would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
