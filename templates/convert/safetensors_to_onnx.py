"""A folder of a transformer's weights → one ONNX file: token numbers and a mask in, the last hidden states out.

    python safetensors_to_onnx.py FOLDER FILE

Runs in the `onnx` environment of conf/config.yaml. Batch and length are free; the numbers are float32.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModel

_INPUTS = ["input_ids", "attention_mask"]
_OUTPUT = "last_hidden_state"


class Body(torch.nn.Module):  # type: ignore[misc]  # torch is not installed where types are checked
    """The model without its language head, and with one output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        """Return the last hidden states, [batch, length, hidden]."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def main(folder: str, file: str) -> None:
    """Export the model in `folder` to `file`."""
    print(f"loading {folder}", flush=True)
    model = AutoModel.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",  # the exporter traces it; fused attention has branches on the mask
        local_files_only=True,
        trust_remote_code=False,
    ).eval()
    model.config.use_cache = False
    example = torch.ones(2, 5, dtype=torch.int64)
    print(f"exporting {type(model).__name__}", flush=True)
    torch.onnx.export(
        Body(model),
        (example, example),
        file,
        input_names=_INPUTS,
        output_names=[_OUTPUT],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in (*_INPUTS, _OUTPUT)},
        opset_version=17,
        dynamo=False,  # the newer exporter needs onnxscript too
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
