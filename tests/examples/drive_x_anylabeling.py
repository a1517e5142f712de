"""Run by X-AnyLabeling-Server's Python: the real server with the example installed answers two requests.

`python drive_x_anylabeling.py CHECKOUT EXAMPLE WORK PICTURE`. The last line is JSON: its list of
models, and its replies for both tasks.
"""

import base64
import json
import os
import shutil
import sys
from pathlib import Path

checkout, example, work, picture = map(Path, sys.argv[1:])
shutil.copytree(checkout, work)
shutil.copy(example / "lira.py", work / "app" / "models")
shutil.copy(example / "lira.yaml", work / "configs" / "auto_labeling")
(work / "configs" / "models.yaml").write_text("enabled_models:\n  - lira\n")
os.chdir(work)
sys.path.insert(0, str(work))

from app.main import app  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

with TestClient(app) as client:
    image = base64.b64encode(picture.read_bytes()).decode()

    def predict(**params: str) -> dict:
        request = {"model": "lira", "image": f"data:image/png;base64,{image}", "params": params}
        return client.post("/v1/predict", json=request).json()

    told = {
        "models": client.get("/v1/models").json()["data"],
        "refseg": predict(current_task="refseg", text_prompt="the orange star, the fish"),
        "gcg": predict(current_task="gcg"),
    }
print(json.dumps(told))
