"""Ends work by Ctrl-C or SIGTERM, which schedulers send: at once, or after a training step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from air_jax.runtime import distributed
from air_jax.runtime.progress import say

_SECONDS_BETWEEN_LOOKS = 1.0


class Terminated(KeyboardInterrupt):
    """SIGTERM, or another process of the run that stops; the same command continues."""


def raise_on_sigterm() -> None:
    """Make SIGTERM raise `Terminated` in the main thread, as Ctrl-C raises KeyboardInterrupt."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


# All processes of a run call it after each step, or call of several steps: what to raise, or None.
Asked = Callable[[], type[KeyboardInterrupt] | None]


@contextlib.contextmanager
def deferred() -> Iterator[Asked]:
    """Note Ctrl-C and SIGTERM, and yield a function that tells what to raise, or None.

    The caller asks after each step, when the state can be saved: a step that is cut off has donated
    its state away. A second Ctrl-C interrupts at once; a second SIGTERM does not, since schedulers
    may send it more than once. All processes of a run stop after the same step, whichever of them
    got the signal. Outside the main thread signals keep their effect.
    """
    noted: type[KeyboardInterrupt] | None = None

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal noted
        wanted = Terminated if signum == signal.SIGTERM else KeyboardInterrupt
        if noted is wanted is KeyboardInterrupt:
            raise wanted
        noted = noted or wanted
        say("stopping after the steps under way; Ctrl-C once more to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if distributed.processes() == 1:
            yield lambda: noted
        else:
            with _together(lambda: noted) as asked:
                yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _together(noted: Asked) -> Iterator[Asked]:
    """Make all processes stop after the same step.

    Processes may be steps apart, and a process that is ahead waits within a step for the others, so
    no process may just stop. Once a process has noted a signal, each process tells, from a thread
    of its own, the first step after which it can still stop. All stop after the last of these.
    """
    run = f"stop/{distributed.number_of_call()}"
    access = threading.Lock()
    agreeing, agreed, ended = threading.Event(), threading.Event(), threading.Event()
    called = last = 0

    def agree() -> None:
        nonlocal last
        while not ended.is_set() and distributed.hear(run, _SECONDS_BETWEEN_LOOKS) is None:
            pass
        with access:
            agreeing.set()
            possible = called + 1
        distributed.tell(f"{run}/{distributed.process()}", str(possible))
        if not ended.is_set():
            told = [
                distributed.hear(f"{run}/{number}") for number in range(distributed.processes())
            ]
            last = max(int(str(one)) for one in told)
            agreed.set()

    def asked() -> type[KeyboardInterrupt] | None:
        nonlocal called
        if noted() and not agreeing.is_set():
            distributed.tell(run, "stop")
        with access:
            called += 1
            waiting = agreeing.is_set()
        if waiting:
            agreed.wait()
            if called >= last:
                return noted() or Terminated
        return None

    thread = threading.Thread(target=agree, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        ended.set()  # a process that stops learns that this one goes to the end
        thread.join()
