"""`lira-edge doctor --sbom` writes what is installed, whole, valid and the same twice."""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from lira_engine import LiraError
from lira_engine.sbom import document as written
from lira_engine.sbom import native, reached
from lira_engine.sbom.document import document
from lira_engine.system.cuda_libraries import CudaHere, CudaLibrary
from lira_engine.system.machine import Gpu

Bill = dict[str, Any]
DIGEST = hashlib.sha256(b"library").digest()
RECORDED = "sha256=" + base64.urlsafe_b64encode(DIGEST).decode().rstrip("=")


@pytest.fixture(scope="module")
def here() -> Bill:
    return json.loads(document())


def valid(bill: Bill) -> None:
    """Raise what does not fit the official schema of CycloneDX 1.6."""
    schemas = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    fault = schemas.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill))
    assert fault is None, fault


def references(bill: Bill) -> list[str]:
    parts = [bill["metadata"]["component"], *bill["components"]]
    return [part["bom-ref"] for part in parts]


# The environment that runs the tests


def test_this_environment_is_a_valid_and_whole_bill(here: Bill) -> None:
    valid(here)
    names = {part["name"] for part in here["components"]} | {"lira-edge"}
    installed = {str(one.metadata["Name"]) for one in metadata.distributions()}
    assert {name.lower().replace("_", "-").replace(".", "-") for name in installed} <= names
    found = references(here)
    assert len(set(found)) == len(found)
    for edge in here["dependencies"]:
        assert {edge["ref"], *edge["dependsOn"]} <= set(found)
    versions = {part["name"]: part.get("version") for part in here["components"]}
    assert versions["numpy"] == metadata.version("numpy")
    scopes = {part["name"]: part.get("scope") for part in here["components"]}
    assert scopes["numpy"] == "required" and scopes["pytest"] == "optional"


def test_the_libraries_of_onnxruntime_are_those_on_the_disk(here: Bill) -> None:
    (runtime,) = (part for part in here["components"] if part["name"].startswith("onnxruntime"))
    files = {file["name"]: file["hashes"][0]["content"] for file in runtime["components"]}
    assert any("pybind11_state" in name for name in files)
    for path in metadata.files(runtime["name"]) or []:
        if path.name in files:
            assert files.pop(path.name) == hashlib.sha256(path.locate().read_bytes()).hexdigest()
    assert not files


def test_nothing_of_this_machine_is_in_it(here: Bill) -> None:
    text = json.dumps(here)
    for word in {str(Path.home()), sys.prefix, str(Path.cwd()), os.uname().nodename, "file:"}:
        assert word not in text
    assert getpass.getuser() in ("root",) or getpass.getuser() not in text


def test_two_processes_write_the_same_bytes() -> None:
    code = "from lira_engine.sbom.document import document; print(document())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert json.loads(runs[0])["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"


# Environments of a few made-up packages


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """site(name, version, fields..., record=...): install a distribution that has metadata only, into an
    environment of nothing else."""
    folder = tmp_path / "site"
    folder.mkdir()

    def installed() -> dict[str, metadata.Distribution]:
        found = metadata.distributions(path=[str(folder)])
        return {str(one.metadata["Name"]).lower(): one for one in found}

    def install(name: str, version: str, *fields: str, record: tuple[str, ...] = (), **texts: str) -> None:
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *fields]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        rows = [row.partition(",")[0] for row in record]
        for row in rows:
            path = folder / row
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"library")
        (info / "RECORD").write_text("".join(f"{row}\n" for row in record))
        for file, text in texts.items():
            (info / f"{file}.json").write_text(text)

    monkeypatch.setattr(written, "distributions", installed)
    monkeypatch.setattr(written, "onnxruntimes", lambda: ())
    monkeypatch.setattr(reached, "onnxruntimes", lambda: ())
    monkeypatch.setattr(written, "extras", lambda: {"cpu": ("onnxruntime",), "export": ("torch",)})
    monkeypatch.setattr(native, "onnxruntime_here", lambda: (None, []))
    monkeypatch.setattr(native, "gpus", lambda: [])
    yield install


def test_the_serial_number_follows_from_the_contents(
    site: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def serial(seconds: str) -> str:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", seconds)
        return json.loads(document())["serialNumber"]

    site("lira-edge", "0.1.0")
    assert serial("1") == serial("1") != serial("2")
    with pytest.raises(LiraError, match="SOURCE_DATE_EPOCH is 'now', expected seconds"):
        serial("now")


def test_doctor_writes_or_prints_it(
    site: Callable[..., None], printed_by: Callable[..., str], tmp_path: Path
) -> None:
    site("lira-edge", "0.1.0")
    assert json.loads(printed_by("doctor", "--sbom", "-"))["specVersion"] == "1.6"
    file = tmp_path / "sbom.json"
    assert printed_by("doctor", "--sbom", str(file)) == f"wrote {file}\n"
    assert json.loads(file.read_bytes())["bomFormat"] == "CycloneDX"


def named(bill: Bill) -> dict[str, Bill]:
    return {part["name"]: part for part in bill["components"]}


def edges(bill: Bill) -> dict[str, list[str]]:
    return {edge["ref"]: edge["dependsOn"] for edge in bill["dependencies"]}


def test_requirements_say_what_reaches_a_package(site: Callable[..., None]) -> None:
    site(
        "lira-edge",
        "0.1.0",
        "Requires-Dist: numpy>=1",
        "Requires-Dist: absent",
        'Requires-Dist: torch>=2; extra == "export"',
        'Requires-Dist: winonly; sys_platform == "nowhere"',
    )
    site("numpy", "2.0")
    site(
        "torch",
        "2.13+cpu",
        "Requires-Dist: Sym.Py[fast] (>=1)",
        "Requires-Dist: sym-py",  # the same again, without the extra
        "Requires-Dist: numpy",
        'Requires-Dist: heavy; extra == "more"',
    )
    site("sym-py", "1", 'Requires-Dist: fastlib; extra == "fast"', "Requires-Dist: torch")  # a circle
    site("fastlib", "3", "Requires-Dist: numpy >=1 and more")  # no requirement by today's rules
    for name in ("heavy", "winonly", "stray"):
        site(name, "1")
    bill = json.loads(document())
    valid(bill)
    found = named(bill)
    assert {name: part["scope"] for name, part in found.items() if "scope" in part} == {
        "numpy": "required",
        **dict.fromkeys(("torch", "sym-py", "fastlib"), "optional"),
        **dict.fromkeys(("heavy", "winonly", "stray"), "excluded"),
    }
    for name in ("torch", "sym-py", "fastlib"):
        assert found[name]["properties"] == [{"name": "lira-edge:extra", "value": "export"}]
    assert "properties" not in found["numpy"] and "properties" not in found["stray"]
    assert found["torch"]["purl"] == "pkg:pypi/torch@2.13%2Bcpu"
    of = edges(bill)
    assert of["lira-edge"] == ["pkg:pypi/numpy@2.0", "pkg:pypi/torch@2.13%2Bcpu"]
    assert of["pkg:pypi/torch@2.13%2Bcpu"] == ["pkg:pypi/numpy@2.0", "pkg:pypi/sym-py@1"]
    assert of["pkg:pypi/sym-py@1"] == ["pkg:pypi/fastlib@3", "pkg:pypi/torch@2.13%2Bcpu"]
    assert of["pkg:pypi/fastlib@3"] == ["pkg:pypi/numpy@2.0"]


def test_another_wheel_of_onnxruntime_stands_in_for_it(
    site: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    site("lira-edge", "0.1.0", 'Requires-Dist: onnxruntime>=1.20; extra == "cpu"')
    site("onnxruntime-gpu", "1.32.0", record=(f"onnxruntime/capi/libcudnn.so.9,{RECORDED},7",))
    libraries = (
        CudaLibrary("CUDA runtime", "libcudart.so.13", "/usr/lib/libcudart.so.13", "13.0"),
        CudaLibrary("cuDNN", "libcudnn.so.9", "/x/nvidia/cudnn/lib/libcudnn.so.9", "9.5.1"),
        CudaLibrary("cuRAND", "libcurand.so.10", None),
    )
    for module in (written, reached):
        monkeypatch.setattr(module, "onnxruntimes", lambda: ("onnxruntime_gpu",))
    monkeypatch.setattr(native, "onnxruntime_here", lambda: ("1.32.0", ["CUDA", "CPU"]))
    monkeypatch.setattr(native, "use_cuda_libraries", lambda: CudaHere("1.32.0", 13, (13, 0), libraries))
    monkeypatch.setattr(native, "gpus", lambda: [Gpu("RTX", "24 MiB", "580.95.05")])
    bill = json.loads(document())
    valid(bill)
    found = named(bill)
    assert found["onnxruntime-gpu"]["scope"] == "optional"
    assert edges(bill)["lira-edge"] == ["pkg:pypi/onnxruntime-gpu@1.32.0"]
    assert edges(bill)["pkg:pypi/onnxruntime-gpu@1.32.0"] == ["cuda-runtime", "cudnn"]
    assert (found["cuDNN"]["version"], found["NVIDIA driver"]["version"]) == ("9.5.1", "580.95.05")
    source = {one["name"]: one["value"] for one in found["CUDA runtime"]["properties"]}
    assert source == {"lira-edge:file": "libcudart.so.13", "lira-edge:from": "system"}
    assert found["cuDNN"]["properties"][1]["value"] == "onnxruntime-gpu"
    assert "cuRAND" not in found and "/usr/lib" not in json.dumps(bill)


def test_licences_are_the_declared_ones(site: Callable[..., None]) -> None:
    def one(*fields: str) -> list[Bill]:
        name = f"p{len(asked)}"
        site(name, "1", *fields)
        asked.append(fields)
        return named(json.loads(document()))[name].get("licenses", [])

    asked: list[tuple[str, ...]] = []
    site("lira-edge", "0.1.0")
    osi = "Classifier: License :: OSI Approved"
    expression = {"expression": "MIT OR Apache-2.0", "acknowledgement": "declared"}
    assert one("License-Expression: MIT OR Apache-2.0", "License: else") == [expression]
    assert one("License: Apache License, Version 2.0") == [{"license": {"id": "Apache-2.0"}}]
    assert one("License: Proprietary") == [{"license": {"name": "Proprietary"}}]
    assert one("License: UNKNOWN", f"{osi} :: ISC License (ISCL)", osi) == [{"license": {"id": "ISC"}}]
    long = "License: MIT License\n        Permission is hereby granted to all"
    assert one(long, f"{osi} :: BSD License") == [{"license": {"name": "BSD License"}}]
    both = [f"{osi} :: MIT License", f"{osi} :: Apache Software License"]
    assert one("License: MIT OR Apache-2.0", *both) == [{"license": {"name": "MIT OR Apache-2.0"}}]
    assert one(*both) == [{"license": {"name": "Apache Software License"}}, {"license": {"id": "MIT"}}]
    assert one() == []
    valid(json.loads(document()))


def test_libraries_and_the_bills_of_wheels_have_their_hashes(site: Callable[..., None]) -> None:
    site("lira-edge", "0.1.0")
    site(
        "pillow",
        "13",
        record=(
            f"pillow.libs/libjpeg-32d.so.62.4.0,{RECORDED},7",
            "pillow.libs/libtiff.so.6,,",
            f"pillow.libs/libz.so.1,{RECORDED.replace('sha256', 'sha384')},7",
            f"PIL/_imaging.cpython-311-x86_64-linux-gnu.so,{RECORDED},7",
            f"PIL/libname.cpython-311-x86_64-linux-gnu.so,{RECORDED},7",
            f"copy/libjpeg-32d.so.62.4.0,{RECORDED},7",
            f"pillow-13.dist-info/sboms/a b.cdx.json,{RECORDED},7",
        ),
    )
    bill = json.loads(document())
    valid(bill)
    part = named(bill)["pillow"]
    hashes = [{"alg": "SHA-256", "content": DIGEST.hex()}]
    assert part["components"] == [
        {"type": "file", "name": "libjpeg-32d.so.62.4.0", "hashes": hashes},
        {"type": "file", "name": "libtiff.so.6"},
        {"type": "file", "name": "libz.so.1"},
    ]
    own = {"type": "bom", "url": "pillow-13.dist-info/sboms/a%20b.cdx.json", "hashes": hashes}
    assert part["externalReferences"] == [own]


def test_the_commit_of_an_installation_is_told_its_address_is_not(site: Callable[..., None]) -> None:
    told = {"url": "https://user:secret@example.com/x", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}
    site("lira-edge", "0.1.0", direct_url=json.dumps(told))
    bill = json.loads(document())
    assert bill["metadata"]["component"]["properties"] == [{"name": "lira-edge:commit", "value": "c0ffee"}]
    assert "secret" not in json.dumps(bill) and "example.com" not in json.dumps(bill)


def test_the_commit_of_a_checkout_says_when_files_were_changed(
    site: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit() -> str | None:
        told = json.loads(document())["metadata"]["component"].get("properties")
        return told and told[0]["value"]

    site("lira-edge", "0.1.0", direct_url=json.dumps({"dir_info": {"editable": True}, "url": "file:///x"}))
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    monkeypatch.setattr(written, "_CODE", checkout)
    assert commit() is None
    for command in ("init -q", "-c user.name=a -c user.email=a commit -q --allow-empty -m first"):
        subprocess.run(["git", "-C", str(checkout), *command.split()], check=True)
    head = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], check=True, capture_output=True)
    assert commit() == head.stdout.decode().strip()
    (checkout / "file").write_text("new")
    subprocess.run(["git", "-C", str(checkout), "add", "file"], check=True)
    assert commit() == head.stdout.decode().strip() + "-dirty"
    (checkout / ".git" / "HEAD").write_text("damaged")
    assert commit() is None


def test_a_bundle_has_no_bill(capsys: pytest.CaptureFixture[str]) -> None:
    from lira_engine.main import main

    with pytest.raises(SystemExit) as caught:
        main(("doctor", "bundle", "--sbom", "-"))
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
