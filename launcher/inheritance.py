"""The variables of ours that a program inherits: a list, and the additions of the config. Pure.

A user's shell holds what concerns no engine: keys of clouds, of the gateway, of version control. An engine reads its
clients' words and a model that somebody else has made, so it gets none of them. Whatever rmlaunch decides for it
(addresses, ports, its own key) stands in the plan's `env`, which comes last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from launcher.masking import is_secret

if TYPE_CHECKING:
    from engines.base import LaunchPlan

#: variable that carries the deployment's folder into every process of the engine
MARKER = "RMLAUNCH_DEPLOYMENT"
#: Set in a supervisor's environment: processes below a nested supervisor belong to its own deployment.
SUPERVISOR = "RMLAUNCH_SUPERVISOR"

#: names, or beginnings that end in *; a beginning brings nothing that is named like a secret
ENGINE = (
    # Any program's: where things are, who runs it, in which language and time it speaks.
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "XDG_*",
    # How the network is reached, for the pictures that a request may name and for models that are fetched all the same
    # (HF_HUB_OFFLINE=0). A proxy's password, if it has one, goes along.
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    # The loader and the allocator: drivers outside its folders; vLLM advises to preload tcmalloc on a CPU.
    "LD_LIBRARY_PATH", "LD_PRELOAD", "MALLOC_*", "GLIBC_TUNABLES", "TCMALLOC_*",
    # The mathematics: how many threads, which kernels (OPENBLAS_CORETYPE, where a processor is not recognised).
    "OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "BLIS_*", "NVPL_*", "NUMEXPR_*", "ONEDNN_*", "DNNL_*", "RAYON_*",
    "ORT_*", "GGML_*",
    # Devices: which are seen, how they talk to each other, what their runtimes and compilers log and keep.
    "CUDA_*", "NVIDIA_*", "NCCL_*", "NVSHMEM_*", "CUDNN_*", "CUBLAS_*", "CUTLASS_*",
    "HIP_*", "HSA_*", "ROCR_*", "ROCM_*", "RCCL_*", "MIOPEN_*", "AMD_*", "GPU_*",
    "ZE_*", "SYCL_*", "ONEAPI_*", "GLOO_*", "TP_SOCKET_IFNAME", "UCX_*", "RBLN_*", "FURIOSA_*",
    # Frameworks and engines: caches, logging, switches. Not HF_TOKEN, which is named like a secret: rmlaunch fetches
    # the model before, engines load it from files and offline, and the token may write to the hub.
    "TORCH*", "PYTORCH_*", "TRITON_*", "HF_*", "HUGGING*", "TRANSFORMERS_*", "SAFETENSORS_*", "TOKENIZERS_*",
    "FLASHINFER_*", "VLLM_*", "JAVA_HOME",
    # Compilers and their settings, used while an engine runs (torch.compile, Triton's kernels, FlashInfer).
    "CC", "CXX", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "MAX_JOBS", "NINJA_STATUS",
    # Python, where they are not about which packages it finds; pyenv's, whose programs are scripts that ask it.
    "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONFAULTHANDLER", "PYTHONWARNINGS",
    "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONNOUSERSITE", "PYTHONPYCACHEPREFIX", "PYENV_*",
)  # fmt: skip

#: for uv, besides `ENGINE`: variables to find packages, passwords included, and to build those that come as source
PACKAGES = (
    "PIP_*", "UV_*", "NETRC", "KEYRING_*", "GIT_*", "SSH_AUTH_SOCK",
    "CFLAGS", "CXXFLAGS", "LDFLAGS", "PKG_CONFIG_PATH", "CMAKE_*", "CARGO_*", "RUSTUP_*",
)  # fmt: skip

#: every variable, for programs that are rmlaunch itself
ALL = ("*",)

#: names that no pattern with * matches: they lead Python, or an engine, to another program's set-up
_NOT_BY_BEGINNING = frozenset(
    (
        "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RBLN_DEVICES", "_VLLM_RBLN_RESOLVED_MODEL_IMPL",
        "VLLM_PORT", "VLLM_HOST_IP", "VLLM_DP_MASTER_IP", "VLLM_DP_MASTER_PORT",
    )
)  # fmt: skip

#: our own variables, which tell whose a process is
OWN = frozenset((SUPERVISOR, MARKER))


def inherited(ours: Mapping[str, str], more: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables out of `ours` that `ENGINE` or `more` lists; secrets only if `more` lists them."""
    return {
        name: value
        for name, value in ours.items()
        if name not in OWN and (_is_one_of(name, more) or (_is_one_of(name, ENGINE) and not is_secret(name)))
    }


def of_engine(plan: LaunchPlan, ours: Mapping[str, str]) -> dict[str, str]:
    """Return the variables out of `ours` that the engine of `plan` gets; those that the plan sets come after them."""
    given = inherited(ours, plan.inherit)
    if plan.environment.managed:
        # Without byte-code every start compiles all of torch again; the folder is ours, so nobody minds the files.
        given.pop("PYTHONDONTWRITEBYTECODE", None)
    return given


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    by_beginning = name not in _NOT_BY_BEGINNING
    return any(
        name == pattern or (by_beginning and pattern.endswith("*") and name.startswith(pattern[:-1]))
        for pattern in patterns
    )
