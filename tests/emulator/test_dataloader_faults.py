"""What happens to a loader when something fails or is killed: never a hang, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Iterator, List, Set

import poptorch
import pytest
from loader_datasets import (
    GUARD,
    Counting,
    Failing,
    Interrupting,
    Loaders,
    hold_second,
    make_options,
    process_of,
    run_script,
    wait_until,
)

ASYNC = poptorch.DataLoaderMode.Async
# SharedMemory starts the worker as FileSystem does.
STRATEGIES = [poptorch.SharingStrategy.FileSystem, poptorch.SharingStrategy.Fork, poptorch.SharingStrategy.ForkServer]


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Lets a test fail that would wait for ever."""

    def fail(*_: Any) -> None:
        raise TimeoutError(f"This took longer than {GUARD} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(GUARD)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def exhaust(iterator: Any) -> None:
    while True:
        next(iterator)


# Exceptions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "error",
    [KeyError("item seven is rotten"), OSError(5, "item seven is rotten")],
    ids=lambda error: type(error).__name__,
)
def test_rule_7_8_a_failing_dataset_is_reported(make: Any, workers: int, error: Exception) -> None:
    loader = make(poptorch.DataLoader, make_options(), Failing(10, error), num_workers=workers, mode=ASYNC)
    seen: List[int] = []
    sentence = f"^The data loader's worker process failed: {type(error).__name__}: .*item seven is rotten'?$"
    with pytest.raises(AssertionError, match=sentence) as failure:
        for batch in loader:
            seen.append(batch.item())
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    assert "in __getitem__" in str(failure.value.__cause__)
    with pytest.raises(AssertionError, match=sentence):
        iter(loader)
    assert process_of(loader).exitcode == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_rule_7_8_a_dataset_that_fails_at_once_is_reported_when_the_loader_is_made(workers: int) -> None:
    with pytest.raises(poptorch.Error, match="failed: ZeroDivisionError: seven") as failure:
        poptorch.DataLoader(
            make_options(), Failing(8, ZeroDivisionError("seven")), sampler=[7], num_workers=workers, mode=ASYNC
        )
    assert "in __getitem__" in str(failure.value.__cause__)


def test_a_dataset_that_exits_is_reported(make: Any) -> None:
    loader = make(poptorch.DataLoader, make_options(), Failing(10, SystemExit(3)), mode=ASYNC)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="ended unexpectedly with exit code"):
        exhaust(iter(loader))


def test_rule_7_6_a_script_needs_its_guard(tmp_path: Path) -> None:
    script = run_script(
        tmp_path,
        """
        import poptorch
        from loader_datasets import Counting
        poptorch.AsynchronousDataAccessor(Counting(3))
        """,
    )
    _, errors = script.communicate(timeout=GUARD)
    assert script.returncode == 1
    assert errors.rstrip().endswith("""needs `if __name__ == "__main__":` around its main part""")


# Deaths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [poptorch.SharingStrategy.ForkServer, poptorch.SharingStrategy.Fork])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_worker_is_reported(make: Any, workers: int, strategy: Any) -> None:
    loader = make(
        poptorch.DataLoader,
        make_options(),
        Counting(10**6),
        num_workers=workers,
        mode=ASYNC,
        async_options={"sharing_strategy": strategy},
    )
    iterator = iter(loader)
    next(iterator)
    os.kill(process_of(loader).pid, signal.SIGKILL)
    sentence = rf"worker process \(pid {process_of(loader).pid}\) was killed by signal 9"
    with pytest.raises(AssertionError, match=sentence):
        exhaust(iterator)
    with pytest.raises(AssertionError, match=sentence):
        iter(loader)
    loader.terminate()


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("waits", [True, False])
def test_a_killed_worker_of_the_worker_is_reported(make: Any, waits: bool, persistent: bool) -> None:
    loader = make(
        poptorch.DataLoader,
        make_options(),
        Loaders(10**6),
        num_workers=2,
        persistent_workers=persistent,
        mode=ASYNC,
    )
    iterator = iter(loader)
    victim = int(next(iterator))
    assert victim != process_of(loader).pid
    if waits:  # until the ring is full, so that the worker waits for the reader and not for its own workers
        for _ in range(3):
            next(iterator)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(AssertionError, match=rf"failed: RuntimeError: DataLoader worker \(pid(\(s\))? {victim}\)"):
        exhaust(iterator)
    assert process_of(loader).exitcode == 0


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_no_worker_of_a_killed_worker_lives_on(make: Any, strategy: Any) -> None:
    loader = make(
        poptorch.DataLoader,
        make_options(),
        Counting(10**6),
        num_workers=2,
        worker_init_fn=hold_second,
        mode=ASYNC,
        async_options={"sharing_strategy": strategy},
    )
    worker = process_of(loader).pid
    children = [int(pid) for pid in Path(f"/proc/{worker}/task/{worker}/children").read_text().split()]
    assert len(children) == 2
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, children)))


def test_interrupts_are_for_the_program(make: Any) -> None:
    loader = make(poptorch.DataLoader, make_options(), Loaders(30), num_workers=1, mode=ASYNC)
    iterator = iter(loader)
    for process in (int(next(iterator)), process_of(loader).pid):
        os.kill(process, signal.SIGINT)
    assert len(list(iterator)) == 30


def test_an_interrupted_program_may_go_on(make: Any) -> None:
    dataset = Interrupting(8)
    loader = make(poptorch.DataLoader, make_options(), dataset, mode=ASYNC)
    iterator = iter(loader)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    seen: List[int] = []
    try:
        while len(seen) < 8:
            dataset.wanted.fill_(len(seen) + 1)
            try:
                seen.append(int(next(iterator)))
            except KeyboardInterrupt:
                dataset.interrupted.fill_(True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert dataset.interrupted and seen == list(range(8))


# Ends of the program --------------------------------------------------------------------------

PROGRAM = """
    import signal
    import poptorch
    from loader_datasets import Images, Stuck

    def load(dataset, **kwargs):
        kwargs.update(batch_size=4, mode=poptorch.DataLoaderMode.Async)
        return poptorch.DataLoader(poptorch.Options(), dataset, **kwargs)

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a program in the background has not
        loaders = [
            load(Images(10**6), num_workers=1, async_options=dict(sharing_strategy=strategy))
            for strategy in {strategies}
        ]
        for loader in loaders:
            for _, batch in zip(range(5), loader):
                pass
        {ending}
"""


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Starts a program with loaders of several kinds, in a session of its own, and waits for its first line."""

    def run(ending: str, strategies: Any = STRATEGIES) -> subprocess.Popen[str]:
        code = PROGRAM.format(strategies=[int(strategy) for strategy in strategies], ending=ending)
        script = run_script(tmp_path, code, start_new_session=True)
        request.addfinalizer(script.kill)
        assert script.stdout is not None and script.stdout.readline() == "ready\n"
        return script

    return run


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def session(leader: int) -> Set[int]:
    """The processes of a session."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == leader:
            found.add(int(status.parent.name))
    return found


def leftovers(processes: Set[int]) -> List[str]:
    """Shared memory that torch made in these processes and nobody has taken away."""
    return [path.name for path in Path("/dev/shm").glob("torch_*") if int(path.name.split("_")[1]) in processes]


def test_rule_7_9_the_end_of_the_program_is_quiet(start: Any) -> None:
    script = start('loaders[2].terminate(); print("ready", flush=True)')
    processes = session(script.pid)
    # Every process that was started holds the other ends of these pipes, so their ends are the end of them all.
    assert (*script.communicate(timeout=GUARD), script.returncode) == ("", "", 0)
    assert leftovers(processes) == []


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_rule_7_9_no_worker_outlives_a_program_that_is_ended(start: Any, signal_number: signal.Signals) -> None:
    # Ctrl-C reaches every process of the terminal, the other signal the program alone.
    interrupt = signal_number == signal.SIGINT
    # The last loader waits for a worker that never answers, or does not answer itself.
    ending = f"""loaders.append(load(Stuck(500), sampler=[0] * 4 + [1] * 4, num_workers={int(not interrupt)}))
        print("ready", flush=True)
        while True:
            for _, batch in zip(range(5), loaders[0]):
                pass"""
    strategies = STRATEGIES[1:]
    script = start(ending, strategies)
    processes = session(script.pid)
    assert len(processes) > 2 * len(strategies)
    (os.killpg if interrupt else os.kill)(script.pid, signal_number)
    output, errors = script.communicate(timeout=GUARD)
    assert script.returncode == -signal_number and output == ""
    assert errors.count("Traceback") == interrupt and errors.rstrip().endswith("KeyboardInterrupt" if interrupt else "")
    assert leftovers(processes) == []


def test_an_interrupt_while_a_loader_is_made(start: Any) -> None:
    ending = """print("ready", flush=True)
        load(Stuck(500), sampler=[1] * 4)"""
    script = start(ending, strategies=())
    os.kill(script.pid, signal.SIGINT)
    _, errors = script.communicate(timeout=GUARD)
    assert script.returncode == -signal.SIGINT and errors.rstrip().endswith("KeyboardInterrupt")
