"""Run by a Python with label_studio_ml: the real WSGI application with the example answers.

`python drive_label_studio.py EXAMPLE PICTURE`. The last line is JSON: the replies, and how many pixels
Label Studio's own decoder finds in each mask.
"""

import json
import sys
from pathlib import Path

import numpy as np

example, picture = map(Path, sys.argv[1:])
sys.path.insert(0, str(example))

from label_studio_ml.api import init_app  # noqa: E402
from label_studio_sdk.converter.brush import decode_rle  # noqa: E402
from model import Lira  # noqa: E402

interface = (example / "labeling_interface.xml").read_text(encoding="utf-8")
task = {"id": 1, "data": {"image": f"/data/local-files/?d={picture.name}"}}
typed = {"result": [{"type": "textarea", "from_name": "prompt", "value": {"text": ["the fish"]}}]}
client = init_app(model_class=Lira).test_client()


def post(path: str, **body: object) -> dict:
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json


def predict(context: dict) -> dict:
    return post("/predict", tasks=[task], project="7.1", label_config=interface, params={"context": context})


def painted(region: dict) -> int:
    """Pixels in the alpha channel of a brush mask."""
    pixels = decode_rle(region["value"]["rle"])
    pixels = pixels.reshape(region["original_height"], region["original_width"], 4)
    return int(np.count_nonzero(pixels[..., 3]))


told = {
    "health": client.get("/health").json,
    "setup": post("/setup", project="7.1", schema=interface),
    "labels": predict({}),
    "typed": predict(typed),
}
told["painted"] = [painted(region) for region in told["labels"]["results"][0]["result"]]
print(json.dumps(told))
