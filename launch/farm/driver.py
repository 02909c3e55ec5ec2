"""The farm itself: Ray Tune runs a trial for each pack, and the dataset remembers what became of it.

Nothing of Tune's state is ever restored. A farm that is started again reads the dataset and goes on, whatever ended the
one before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.farm.cluster import Workers, await_nodes, find_workers, ray_cluster, this_machine
from launch.farm.config import FarmConfig
from launch.farm.manifest import scan
from launch.farm.plan import FARM, add_line, read_lines
from launch.farm.queue import Ending, Nothing, PackQueue
from launch.farm.records import AlbumRecord
from launch.farm.view import FarmView
from launch.farm.worker import CONFIG, PackSpec, Part
from launch.planner import PackCost, first_cost, measured_cost, plan_pack_size, weights_gib
from modules.errors import UserError
from trainer.artifacts import folder_errors, hash_json, run_lock, to_plain

if TYPE_CHECKING:
    from trainer.config import RunConfig
    from trainer.loggers import SafeLogger

log = logging.getLogger(__name__)

COSTS = "costs.jsonl"
_MAX_COSTS = 500
_WAIT_S = 0.5


@dataclass(frozen=True, kw_only=True)
class FarmResult:
    """How a farm ended.

    Attributes:
        records: of all albums, by name.
        stopped: the signal that ended it early; None when there is nothing left to do.
    """

    records: dict[str, AlbumRecord]
    stopped: int | None


def run_farm(
    sources: Sequence[Path],
    dataset: Path,
    config: RunConfig,
    settings: FarmConfig | None = None,
    *,
    trainable: Callable[[], type] | None = None,
    group: str = "",
) -> FarmResult:
    """Turn all albums of `sources` into a dataset, and do only what is missing, failed or stale.

    Args:
        sources: see `scan`.
        dataset: its folder; every machine of the cluster has to see it under this path.
        config: of each album's run; `out` does not count.
        settings: of the farm.
        trainable: gives the class that does a trial; the farm's own when None.
        group: name of the farm in W&B; the dataset's folder when empty.

    Raises:
        UserError: no album, no cluster, a folder that cannot be written, or a trouble of the machines without an end.
    """
    settings = settings or FarmConfig()
    dataset = dataset.resolve()
    entries = scan(sources)
    with folder_errors(dataset):
        (dataset / FARM).mkdir(parents=True, exist_ok=True)
    identity = settings_hash(config)
    config_path = _save_config(config, dataset, identity)
    cpus = settings.cpus_per_pack or max(config.runtime.num_threads, 1)
    alone = settings.scheduler == "alone"
    cluster = (
        contextlib.nullcontext() if alone else ray_cluster(settings.address, object_store_mb=settings.object_store_mb)
    )
    with cluster as ray:
        if alone:
            workers = this_machine(cpus=cpus, fraction=settings.memory_fraction)
        else:
            await_nodes(ray, settings.await_nodes)
            workers = find_workers(ray, cpus=cpus, gpus=settings.gpus_per_pack, fraction=settings.memory_fraction)
        apart = settings.cpu_stages_apart == "always" or (
            settings.cpu_stages_apart == "auto" and workers.on_gpu and not alone
        )
        started_s = time.monotonic()

        def size(waiting: int) -> int:
            cost = pack_cost(dataset, config, on_gpu=workers.on_gpu)
            left_s = started_s + settings.deadline_s - time.monotonic() if settings.deadline_s else math.inf
            return choose_size(waiting, workers, settings, cost, left_s)

        queue = PackQueue(
            dataset,
            entries,
            settings=identity,
            config=settings,
            num_workers=workers.num,
            apart=apart,
            pack_size=size,
        )
        group = group or dataset.name
        view = FarmView(dataset, queue, index_every_s=settings.index_every_s, tracker=_tracker(dataset, config, group))
        farm = _Farm(
            dataset=dataset,
            sources=sources,
            queue=queue,
            view=view,
            settings=settings,
            workers=workers,
            config_path=config_path,
            identity=identity,
            threads=max(1, int(cpus)),
            group=group,
        )
        with farm.signals():
            if alone:
                farm.go_alone()
            else:
                farm.fit(trainable)
        view.update(final=True)
    if settings.shards and farm.stopped is None:
        from launch.farm.shards import write_shards

        write_shards(dataset, list(queue.records.values()), size_mb=settings.shard_size_mb)
    if settings.end_file and farm.stopped is None:
        with folder_errors(Path(settings.end_file)):
            Path(settings.end_file).touch()
    return FarmResult(records=queue.records, stopped=farm.stopped)


def settings_hash(config: RunConfig) -> str:
    """Of all that shapes a result: the configuration without places and devices, and the backbone's weights."""
    from trainer.backbone_hash import hash_backbone
    from trainer.config import PROJECT_ROOT

    weights = hash_backbone(config.backbone.path, PROJECT_ROOT)
    names = [item.name for item in dataclasses.fields(config) if item.name not in ("out", "runtime")]
    shaping = {name: getattr(config, name) for name in names}
    return hash_json([shaping, config.runtime.precision, weights])[:32]


def _tracker(dataset: Path, config: RunConfig, group: str) -> SafeLogger | None:
    """The farm's own run in W&B, beside those of its albums; None where nobody asks for W&B."""
    if config.runtime.logger != "wandb":
        return None
    from trainer.loggers import SafeLogger, WandbLogger
    from trainer.tracking import TRACKERS_NAME, Tracked

    try:
        tracked = Tracked(folder=dataset / TRACKERS_NAME, group=group, config=to_plain(config))
        return SafeLogger(WandbLogger(dataset, tracked))
    except ModuleNotFoundError as error:
        raise UserError("runtime.logger is 'wandb', but its package is not installed: pip install wandb.") from error


def pack_cost(dataset: Path, config: RunConfig, *, on_gpu: bool) -> PackCost:
    """What a pack takes, from packs of this dataset that are done, else from the model's size."""
    from modules.diffusion.sources import resolve_backbone
    from trainer.config import PROJECT_ROOT
    from trainer.packing import most_parts

    unet = resolve_backbone(config.backbone.path, PROJECT_ROOT) / "unet"
    guess = first_cost(weights_gib(unet), most_parts(config, 1))
    rows = [row for row in read_lines(dataset / FARM / COSTS) if row.get("gpu_gib") is not None or not on_gpu]
    return measured_cost(rows[-_MAX_COSTS:], guess, on_gpu=on_gpu)


def choose_size(waiting: int, workers: Workers, settings: FarmConfig, cost: PackCost, left_s: float) -> int:
    """Albums of a new pack."""
    if settings.pack_size:
        return settings.pack_size
    return plan_pack_size(
        cost,
        num_albums=max(waiting, 1),
        num_workers=workers.num,
        device_gib=workers.memory_gib,
        largest=settings.max_pack_size,
        deadline_s=left_s,
    )


def _save_config(config: RunConfig, dataset: Path, identity: str) -> Path:
    """Keep the resolved configuration; a farm with other settings has a file of its own."""
    from trainer.config import save_config

    path = dataset / FARM / f"config-{identity[:12]}.yaml"
    # Farms that begin together write the same.
    with run_lock(dataset / FARM / "config", wait=True):
        save_config(config, path)
        save_config(config, dataset / CONFIG)
    return path


@dataclass
class _Farm:
    """Joins a queue to Tune."""

    dataset: Path
    sources: Sequence[Path]
    queue: PackQueue
    view: FarmView
    settings: FarmConfig
    workers: Workers
    config_path: Path
    identity: str
    threads: int
    group: str
    stopped: int | None = None
    trouble: UserError | None = None
    _trials: dict[str, str] = dataclasses.field(default_factory=dict)  # Tune's id to the pack
    _rescanned_s: float = dataclasses.field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.stop_path = self._own_path("stop")

    def _own_path(self, kind: str) -> Path:
        return self.dataset / FARM / f"{kind}-{socket.gethostname()}-{os.getpid()}"

    def _clear_up(self) -> None:
        """Remove what farms of this machine have left that were killed."""
        for kind in ("tune", "stop"):
            for path in (self.dataset / FARM).glob(f"{kind}-{socket.gethostname()}-*"):
                if not Path("/proc", path.name.rpartition("-")[2]).exists():
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    # -- what Tune asks -----------------------------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | Nothing:
        """The configuration of the next trial."""
        found = self.queue.next()
        if isinstance(found, Nothing):
            return found
        pack, part = found
        self._trials[trial_id] = pack.name
        spec = PackSpec(
            dataset=str(self.dataset),
            pack=pack.name,
            part=part,
            albums=tuple((name, self.queue.sources[name]) for name in pack.albums if name in self.queue.sources),
            config=str(self.config_path),
            settings=self.identity,
            attempt=self.queue.attempt_of(pack.name),
            group=self.group,
        )
        return {
            "spec": json.dumps(dataclasses.asdict(spec)),
            "stop": str(self.stop_path),
            "grace_s": self.settings.grace_s,
            "threads": self.threads,
            "part": part,
            "pack": pack.name,
        }

    def begun(self, trial_id: str) -> None:
        if trial_id in self._trials:
            self.queue.begun(self._trials[trial_id])

    def ended(self, trial_id: str, result: dict[str, Any] | None, *, error: bool) -> None:
        """A trial is over; without a result the machine or its worker has gone."""
        name = self._trials.pop(trial_id, None)
        if name is None:
            return
        how: Ending = "lost" if error or not result else result.get("ended", "lost")
        if self.stopped is not None and how != "done":
            how = "stopped"
        try:
            finished = self.queue.ended(name, how, (result or {}).get("reason") or "its machine or its worker has gone")
        except UserError as trouble:
            self.trouble = trouble
            self.queue.drained = True
            self._ask_to_stop()
            return
        for album in finished:
            record = self.queue.records[album]
            if record.state == "failed":
                self.view.failed(album, record.reason or "")
        if how == "done":
            self._keep_cost(name)

    def tick(self) -> None:
        """Called every moment."""
        self.view.update()
        every_s = self.settings.rescan_s
        if every_s and not self.queue.drained and time.monotonic() - self._rescanned_s >= every_s:
            self._rescanned_s = time.monotonic()
            try:
                added = self.queue.add(scan(self.sources))
                if added:
                    log.info("%d albums were added.", len(added))
            except UserError as error:
                log.warning("The list of albums cannot be read again: %s", error)

    def _keep_cost(self, name: str) -> None:
        rows = read_lines(self.queue.plan.attempts_path(name))
        if rows and rows[-1].get("seconds") and rows[-1].get("part") in ("all", "train"):
            keys = ("num_albums", "seconds", "memory_gib", "gpu_gib")
            with contextlib.suppress(UserError):
                add_line(self.dataset / FARM / COSTS, {key: rows[-1].get(key) for key in keys})

    # -- running ------------------------------------------------------------------------------------------------------

    def fit(self, trainable: Callable[[], type] | None) -> None:
        """Run trials until there are none left."""
        from launch.farm.tuner import run_tuner

        self.stop_path.unlink(missing_ok=True)
        # Nothing in it is wanted by anybody, but every node has to see it.
        storage = self._own_path("tune")
        self._clear_up()
        try:
            run_tuner(self, trainable, storage)
        finally:
            self.view.close()
            self.stop_path.unlink(missing_ok=True)
            shutil.rmtree(storage, ignore_errors=True)
        if self.trouble is not None:
            raise self.trouble

    def go_alone(self) -> None:
        """Do one pack after the other in processes below this one; packs of other such farms are left to them."""
        from launch.farm.process import run_pack_process

        self.stop_path.unlink(missing_ok=True)
        try:
            for number in itertools.count():
                found = self.suggest(str(number))
                if found is Nothing.EVER or (isinstance(found, Nothing) and self.queue.only_busy()):
                    break
                self.tick()
                if isinstance(found, Nothing):
                    time.sleep(_WAIT_S)
                    continue
                self.begun(str(number))
                ended, reason = run_pack_process(found, self.tick)
                self.ended(str(number), {"ended": ended, "reason": reason}, error=False)
        finally:
            self.view.close()
            self.stop_path.unlink(missing_ok=True)
        if self.trouble is not None:
            raise self.trouble

    def resources(self, part: Part) -> dict[str, float]:
        """What a trial holds."""
        if part in ("prepare", "finish"):
            return {"CPU": self.settings.cpus_per_cpu_stage}
        return {"CPU": self.workers.cpus} | ({"GPU": self.workers.gpus} if self.workers.on_gpu else {})

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Let running packs save themselves at SIGINT, SIGTERM and SIGUSR1; another SIGINT ends at once."""
        numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.getsignal(number) for number in numbers}

        def stop(number: int, frame: Any) -> None:
            if self.stopped is None:
                self.stopped = number
                self.queue.drained = True
                self._ask_to_stop()
            elif number == signal.SIGINT:
                # Somebody is impatient. Clusters send the others more than once.
                raise KeyboardInterrupt

        for number in numbers:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _ask_to_stop(self) -> None:
        with contextlib.suppress(OSError):
            self.stop_path.write_text("")
