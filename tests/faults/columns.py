"""The columns of the table: what is known of each engine, so that a fault can be aimed at it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.dockerd import BASE

NO_WORKER = "one process does everything"
NO_SESSION = "it starts no process in a session of its own"

_DOCKER = ("runtime=docker", f"runtime.base={BASE}")
_KV_CACHE = "engine.args.ctx_size=32768"


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    worker: str | None  #: is in the command line of the process that computes; None where that is the leader
    leader: str | None  #: the program that listens; None where that is what was started
    loading_cpu_s: float  #: seconds of processor time after which it is in the middle of its load
    memory_mb: int  #: it loads its code in that, but not the model
    load_s: float  #: it has loaded by then, on a busy machine too
    hungry: tuple[str, ...] = ()  #: words of its command line, for the test that needs it to take memory
    words: tuple[str, ...] = ()  #: of its command line, besides engine=

    @property
    def engine(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def in_docker(self) -> bool:
        return "runtime=docker" in self.words

    @property
    def real(self) -> bool:
        return self.name != "fake"


FAKE = Column(
    "fake",
    worker="misbehaving-worker",
    leader=None,
    loading_cpu_s=0.01,
    memory_mb=64,
    load_s=20,
    hungry=("--allocate=600",),
)

#: the quick ones first: a defect in the tests themselves shows at once
COLUMNS = (
    FAKE,
    # It reads its weights in place, and the kernel takes such pages back; a long context is memory of its own.
    Column("llamacpp", None, None, loading_cpu_s=0.1, memory_mb=100, load_s=60, hungry=(_KV_CACHE,)),
    Column("triton", worker="triton_python_backend_stub", leader=None, loading_cpu_s=1, memory_mb=250, load_s=90),
    Column("torchserve", worker="model_service_worker.py", leader="java", loading_cpu_s=1, memory_mb=450, load_s=90),
    Column("vllm", worker="VLLM::EngineCore", leader=None, loading_cpu_s=5, memory_mb=150, load_s=180),
    # What was started there is Docker's little init, and the engine is its child.
    Column("llamacpp (docker)", None, leader="python", loading_cpu_s=0.1, memory_mb=100, load_s=600,
           hungry=(_KV_CACHE,), words=_DOCKER),
    Column("triton (docker)", worker="triton_python_backend_stub", leader="tritonserver", loading_cpu_s=1,
           memory_mb=250, load_s=600, words=_DOCKER),
)  # fmt: skip
