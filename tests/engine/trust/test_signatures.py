"""Bundles and engines are signed as OpenSSF Model Signing says, and what was changed since is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lira_engine import Bundle, LiraError, open_engines
from lira_engine.build import build
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import MANIFEST_NAME, Manifest
from lira_engine.engines.record import BUILD_NAME, read_build
from lira_engine.inspect import describe
from lira_engine.ort import target as ort_target
from lira_engine.signatures import check_signatures
from lira_engine.trust.keys import Key, trust, trusted_keys, trusted_path
from lira_engine.trust.signer import PASSPHRASE, Signer, sign_folder, signer_for

pytest.importorskip("model_signing", reason="the extra sign is not installed")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

SECRET = b"open sesame"
ENGINES = "engines/cpu-fp32"


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(PASSPHRASE, raising=False)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, secret: bytes = b"") -> Path:
    """Write the private key KEY and the public one KEY.pub; return the first."""
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(secret) if secret else serialization.NoEncryption(),
        )
    )
    path.with_suffix(".pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "key", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_suffix(".pub")


def sign(bundle: Path, signer: Signer) -> Path:
    """Sign a bundle as `export` does."""
    listed = Manifest.load(bundle / MANIFEST_NAME).files
    files = {name: entry.sha256 for name, entry in listed.items()}
    sign_folder(signer, bundle, "tiny", files | {MANIFEST_NAME: sha256_of(bundle / MANIFEST_NAME)})
    return bundle


@pytest.fixture
def signed(bundle_path: Path, key: Path) -> Path:
    """A signed bundle with signed engines."""
    build(bundle_path, threads=1, signer=Signer.load(key))
    return sign(bundle_path, Signer.load(key))


def package(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line of the package itself."""
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def said(bundle: Path, public: Path | None, trusting: bool = False) -> str:
    return str(check_signatures(bundle, public, trusting))


def test_signed_folders_are_found_right(signed: Path, public: Path) -> None:
    name = Key.read(public).fingerprint[:12]
    rows = dict(check_signatures(signed, public))
    assert rows["signatures"] == [
        (str(signed), f"as signed by {name}, {len(list(_files(signed)))} files"),
        (str(signed / ENGINES), f"as signed by {name}, {len(list((signed / ENGINES).iterdir())) - 1} files"),
    ]
    assert "not trusted" in str(rows["keys"])
    assert said(signed / "engines" / "cpu-fp32", public).count("as signed by") == 1
    described = json.loads(_statement(signed))
    assert described["subject"][0]["name"] == "tiny"
    assert [one["name"] for one in described["predicate"]["resources"]] == sorted(_files(signed))


def _files(bundle: Path) -> list[str]:
    paths = [path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file()]
    return [path.as_posix() for path in paths if path.parts[0] not in ("engines", "model.sig")]


def _statement(folder: Path) -> bytes:
    import base64

    return base64.b64decode(json.loads((folder / "model.sig").read_text())["dsseEnvelope"]["payload"])


def test_the_packages_own_command_agrees(signed: Path, public: Path) -> None:
    for folder in (signed, signed / "engines" / "cpu-fp32"):
        asked = ("verify", "key", folder, "--signature", folder / "model.sig", "--public_key", public)
        found = package(*asked)
        assert found.returncode == 0, found.stdout + found.stderr
    (signed / "separators.npy").write_bytes(b"other")
    asked = ("verify", "key", signed, "--signature", signed / "model.sig", "--public_key", public)
    assert package(*asked).returncode != 0


def test_what_the_package_signed_is_found_right(bundle_path: Path, key: Path, public: Path) -> None:
    build(bundle_path, threads=1)
    for folder, left_out in ((bundle_path, "engines"), (bundle_path / "engines" / "cpu-fp32", "none")):
        found = package(
            "sign", "key", folder, "--signature", folder / "model.sig", "--private_key", key,
            "--ignore-paths", folder / left_out,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout + found.stderr
    assert said(bundle_path, public).count("as signed by") == 2
    (bundle_path / "new").write_text("")
    with pytest.raises(LiraError, match=r"\(added: new\)"):
        said(bundle_path, public)


def alter(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(b"altered")


def add(name: str) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("new")

    return write


def remove(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


def link(name: str) -> Callable[[Path], object]:
    """The file, moved out of the folder and linked to: it has the right contents now."""

    def replace(root: Path) -> None:
        (root / name).rename(root.parent / "outside")
        (root / name).symlink_to(root.parent / "outside")

    return replace


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ([alter("lira.json")], "altered: lira.json"),
        ([alter("llm.onnx.data"), alter("sefe.onnx")], "altered: llm.onnx.data, sefe.onnx"),
        ([add("checks/more.npz"), add("b"), add(".hidden")], "added: .hidden, b, checks/more.npz"),
        ([add("sub/.git")], "added: sub/.git"),
        ([remove("tokenizer.json"), remove("checks/llm.npz")], "removed: checks/llm.npz, tokenizer.json"),
        (
            [alter("sefe.onnx"), add("b"), remove("lira.json")],
            "altered: sefe.onnx; added: b; removed: lira.json",
        ),
        ([lambda root: (root / "sefe.onnx").rename(root / "b.onnx")], "added: b.onnx; removed: sefe.onnx"),
        ([lambda root: os.mkfifo(root / "b")], "added: b"),
        ([lambda root: os.symlink("/etc", root / "b")], "added: b"),
        ([link("sefe.onnx")], "altered: sefe.onnx"),
        ([alter(f"{ENGINES}/build.json")], "altered: build.json"),
        ([add(f"{ENGINES}/b.onnx")], "added: b.onnx"),
        ([add(f"{ENGINES}/engines/b")], "added: engines/b"),
        ([remove(f"{ENGINES}/sefe.onnx")], "removed: sefe.onnx"),
    ],
)
def test_changed_files_are_named(
    signed: Path, public: Path, changes: list[Callable[[Path], object]], named: str
) -> None:
    for change in changes:
        change(signed)
    folder = signed / ENGINES if ENGINES in str(changes) or "build" in named else signed
    with pytest.raises(LiraError) as caught:
        said(signed, public, trusting=True)
    text = str(caught.value)
    assert f"is not as it was signed ({named}): get the folder again" in text and "\n" not in text
    assert folder.name in text and trusted_keys() == []  # nothing is trusted that is not right


def test_files_of_git_are_left_out(signed: Path, public: Path) -> None:
    (signed / ".git").mkdir()
    (signed / ".git" / "config").write_text("")
    (signed / ".gitattributes").write_text("")
    assert said(signed, public).count("as signed by") == 2


def test_a_signature_of_another_key_is_worth_nothing(signed: Path, tmp_path: Path) -> None:
    other = write_key(tmp_path / "other", ec.generate_private_key(ec.SECP384R1())).with_suffix(".pub")
    with pytest.raises(LiraError, match=r"model\.sig is by the key [0-9a-f]{12}, which is not .*other\.pub"):
        said(signed, other)
    with pytest.raises(LiraError, match=r"is by the key [0-9a-f]{12}, which this user does not trust"):
        said(signed, None)


def _with(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def _other_statement(content: dict[str, object]) -> None:
    import base64

    envelope = content["dsseEnvelope"]
    assert isinstance(envelope, dict)
    statement = base64.b64decode(envelope["payload"]).replace(b"tokenizer.json", b"tokenizer.jso2")
    envelope["payload"] = base64.b64encode(statement).decode()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b""), "is no signature of OpenSSF Model Signing"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "is no signature"),
        (lambda path: path.write_text("[]"), "is no signature"),
        (lambda path: path.write_text("[" * 100_000), "is no signature"),
        (_with(lambda content: content.pop("verificationMaterial")), "is no signature"),
        (_with(lambda content: content.pop("dsseEnvelope")), "was altered: it is not what"),
        (_with(lambda content: content.update(mediaType="x")), "was altered"),
        (_with(lambda content: content["dsseEnvelope"].update(signatures=[])), "was altered"),
        (_with(lambda content: content["dsseEnvelope"].update(payload="!")), "was altered"),
        (_with(_other_statement), "was altered"),
        (lambda path: path.unlink(), "is not signed: it has no model.sig, which `lira-edge export --sign"),
        (lambda path: (path.unlink(), path.mkdir()), "is no signature, expected a file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is no signature, expected a file"),
    ],
)
def test_a_damaged_signature_is_told(
    signed: Path, public: Path, damage: Callable[[Path], object], reason: str
) -> None:
    damage(signed / "model.sig")
    with pytest.raises(LiraError, match=re.escape(reason)):
        said(signed, public)


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of the CPU are code, as those of TensorRT are: there is no check that lets them run."""
    monkeypatch.setattr(ort_target.CpuTarget, "engines_are_code", True)


@pytest.fixture
def elsewhere(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: None) -> Path:
    """The signed bundle as another user gets it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "other user"))
    return signed


def open_once(bundle: Path) -> None:
    with open_engines(bundle, threads=1) as engines:
        assert engines.remark == ""


def test_engines_run_while_their_signer_is_trusted(elsewhere: Path, public: Path) -> None:
    refused = r"were not built here \(nothing in .* says so\) \(.*which this user does not trust\), and they"
    with pytest.raises(LiraError, match=refused):
        open_once(elsewhere)
    printed = said(elsewhere, public, trusting=True)
    fingerprint = Key.read(public).fingerprint
    assert f"trusted: engines that it signed run here, until {trusted_path(fingerprint)}" in printed
    open_once(elsewhere)
    ((_, row),) = dict(describe(elsewhere))["engines"]
    assert row == f"ready, signed by {fingerprint[:12]}"
    build(elsewhere, threads=1)  # up to date
    assert read_build(elsewhere / ENGINES, "").known.signed == fingerprint
    trusted_path(fingerprint).unlink()
    with pytest.raises(LiraError, match=refused):
        open_once(elsewhere)


def test_a_signature_is_checked_once(elsewhere: Path, public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(elsewhere, public, trusting=True)
    open_once(elsewhere)
    monkeypatch.setattr("lira_engine.engines.origin.checked_signature", None)
    open_once(elsewhere)


def test_signed_engines_that_were_changed_are_refused(elsewhere: Path, public: Path) -> None:
    """Hashes that fit, as a stranger would make them, and a signature of other engines."""
    said(elsewhere, public, trusting=True)
    record = elsewhere / ENGINES / BUILD_NAME
    record.write_text(record.read_text().replace('"threads"', '"threads"') + " ")
    with pytest.raises(LiraError, match=r"cpu-fp32 is not as it was signed \(altered: build\.json\)"):
        open_once(elsewhere)
    (elsewhere / ENGINES / "model.sig").unlink()
    with pytest.raises(LiraError, match=r"were not built here .*, and they are code"):
        open_once(elsewhere)


def test_a_planted_key_file_is_not_trusted(elsewhere: Path, public: Path, tmp_path: Path) -> None:
    other = Key.read(write_key(tmp_path / "o", ec.generate_private_key(ec.SECP256R1())).with_suffix(".pub"))
    wrong_name = trusted_path(other.fingerprint)
    wrong_name.parent.mkdir(parents=True)
    wrong_name.write_bytes(public.read_bytes())
    trusted_path("broken").write_text("-----BEGIN PUBLIC KEY-----\n")
    for path in wrong_name.parent.iterdir():
        path.chmod(0o600)
    assert trusted_keys() == []
    kept = trust(Key.read(public))
    assert [one.path for one in trusted_keys()] == [kept] and kept.stat().st_mode & 0o777 == 0o600
    kept.chmod(0o666)
    assert trusted_keys() == []
    with pytest.raises(LiraError, match="and they are code"):
        open_once(elsewhere)


def test_without_the_package_a_signature_proves_nothing(
    elsewhere: Path, public: Path, monkeypatch: pytest.MonkeyPatch, key: Path
) -> None:
    monkeypatch.delitem(sys.modules, "lira_engine.trust.package", raising=False)
    monkeypatch.delattr("lira_engine.trust.package", raising=False)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    install = r"signatures need model_signing, which is missing: pip install 'lira-edge\[sign\]'"
    with pytest.raises(LiraError, match=install):
        Signer.load(key)
    with pytest.raises(LiraError, match=install):
        said(elsewhere, public)
    with pytest.raises(LiraError, match=rf"were not built here .*\({install}\), and they are code"):
        open_once(elsewhere)


def test_keys_that_cannot_sign_are_told(
    tmp_path: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = r"`openssl ecparam -name prime256v1 -genkey -noout -out KEY` makes one"
    no_curve = f"is no elliptic curve key .*: {make}"
    bad = {
        tmp_path / "missing": "the private key .* cannot be read: No such file",
        public: f"is no private key in PEM: {make}",
        write_key(tmp_path / "rsa", rsa.generate_private_key(65537, 2048)): no_curve,
        write_key(tmp_path / "k1", ec.generate_private_key(ec.SECP256K1())): no_curve,
        write_key(tmp_path / "locked", ec.generate_private_key(ec.SECP256R1()), SECRET): (
            f"cannot be opened .*: put its passphrase into {PASSPHRASE}"
        ),
    }
    for path, reason in bad.items():
        with pytest.raises(LiraError, match=reason):
            Signer.load(path)
    monkeypatch.setenv(PASSPHRASE, "wrong")
    with pytest.raises(LiraError, match=f"cannot be opened .*: see {PASSPHRASE}"):
        Signer.load(tmp_path / "locked")
    with pytest.raises(LiraError, match="--certificate goes with --sign"):
        signer_for(None, public)
    with pytest.raises(LiraError, match=r"is no public key or certificate in PEM: `openssl ec"):
        Key.read(tmp_path / "rsa")


def test_a_key_with_a_passphrase(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = write_key(tmp_path / "locked", ec.generate_private_key(ec.SECP521R1()), SECRET)
    monkeypatch.setenv(PASSPHRASE, SECRET.decode())
    sign(bundle_path, Signer.load(locked))
    monkeypatch.delenv(PASSPHRASE)
    assert "as signed by" in said(bundle_path, locked.with_suffix(".pub"))


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A private key, the file with its certificate and the one that issued it, and the root certificate."""
    import datetime

    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in ("root", "mid", "leaf")
    ]
    start = datetime.datetime(2024, 1, 1)
    made = []
    for level, (one, name) in enumerate(zip(keys, names, strict=True)):
        issuer = max(level - 1, 0)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[issuer])
            .public_key(one.public_key())
            .serial_number(level + 1)
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=9999))
            .add_extension(x509.BasicConstraints(ca=level < 2, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(level == 2, False, False, False, False, level < 2, False, False, False), True
            )
        )
        made.append(builder.sign(keys[issuer], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    root, full = tmp_path / "root.pem", tmp_path / "full.pem"
    root.write_bytes(made[0])
    full.write_bytes(made[2] + made[1])
    return write_key(tmp_path / "leaf", keys[2]), full, root


def test_a_certificate_is_known_by_its_own_bytes(chain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """As `openssl x509 -fingerprint -sha256` names it, whatever stands around it in the file."""
    *_, root = chain
    with_text = tmp_path / "with text.pem"
    with_text.write_bytes(b"Subject: CN=root\n\n" + root.read_bytes())
    expected = x509.load_pem_x509_certificate(root.read_bytes()).fingerprint(hashes.SHA256()).hex()
    assert {Key.read(root).fingerprint, Key.read(with_text).fingerprint} == {expected}


def test_certificates(
    bundle_path: Path,
    chain: tuple[Path, Path, Path],
    key: Path,
    code: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaf, full, root = chain
    signer = Signer.load(leaf, full)
    build(bundle_path, threads=1, signer=signer)
    sign(bundle_path, signer)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "other user"))
    found = package(
        "verify", "certificate", bundle_path, "--signature", bundle_path / "model.sig",
        "--certificate_chain", root,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    other = key.with_suffix(".pub")
    with pytest.raises(LiraError, match=r"is by a certificate, which is not .*key\.pub"):
        said(bundle_path, other)
    with pytest.raises(LiraError, match=r"which this user does not trust\), and they are code"):
        open_once(bundle_path)
    assert said(bundle_path, root, trusting=True).count("as signed by") == 2
    open_once(bundle_path)
    assert said(bundle_path, None).count("as signed by") == 2
    with pytest.raises(LiraError, match="cannot sign together: The public key from the certificate does not"):
        Signer.load(key, full)


def test_up_to_date_engines_are_signed_without_a_build(
    bundle_path: Path, key: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build(bundle_path, threads=1)
    before = (folder / BUILD_NAME).stat().st_mtime_ns
    build(bundle_path, threads=1, signer=Signer.load(key))
    assert (folder / BUILD_NAME).stat().st_mtime_ns == before
    assert "as signed by" in said(folder, public)
    build(bundle_path, threads=1, force=True)  # unsigned: no signature of others stays
    with pytest.raises(LiraError, match="is not signed"):
        said(folder, public)


def test_a_build_leaves_engines_of_a_trusted_key_theirs(
    elsewhere: Path, public: Path, printed_by: Callable[..., str]
) -> None:
    """Once the key is revoked they are a stranger's again, whatever was run meanwhile."""
    said(elsewhere, public, trusting=True)
    before = (elsewhere / ENGINES / BUILD_NAME).stat().st_mtime_ns
    printed_by("build", str(elsewhere), "--threads", "1")
    assert (elsewhere / ENGINES / BUILD_NAME).stat().st_mtime_ns == before
    trusted_path(Key.read(public).fingerprint).unlink()
    with pytest.raises(LiraError, match="and they are code"):
        open_once(elsewhere)


def test_engines_that_were_swapped_meanwhile_are_not_signed(
    bundle_path: Path, key: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature covers what was checked, not what lies there by now."""
    record = build(bundle_path, threads=1) / BUILD_NAME
    real = Signer.sign

    def swapping(self: Signer, files: object, path: Path) -> None:
        record.write_text(record.read_text() + " ")
        real(self, files, path)  # type: ignore[arg-type]

    monkeypatch.setattr(Signer, "sign", swapping)
    build(bundle_path, threads=1, signer=Signer.load(key))
    with pytest.raises(LiraError, match=r"altered: build\.json"):
        said(record.parent, public)


def test_a_link_in_a_signatures_place_is_not_followed_out(
    bundle_path: Path, key: Path, tmp_path: Path
) -> None:
    folder = build(bundle_path, threads=1)
    (tmp_path / "mine").write_text("mine")
    (folder / "model.sig").symlink_to(tmp_path / "mine")
    with pytest.raises(LiraError, match=r"'model\.sig' is a link that leads out of the folder"):
        build(bundle_path, threads=1, signer=Signer.load(key))
    assert (tmp_path / "mine").read_text() == "mine"


def test_engines_without_a_signature_are_named(signed: Path, public: Path) -> None:
    (signed / ENGINES / "model.sig").unlink()
    assert (str(signed / ENGINES), "not signed") in dict(check_signatures(signed, public))["signatures"]


def test_verifying_leaves_the_signature_right(signed: Path, public: Path) -> None:
    """`verify` writes what it found into the user's folder, not into what is signed."""
    from lira_engine.engines.verified import keep_verified

    keep_verified(read_build(signed / ENGINES, ""), None)
    assert said(signed, public).count("as signed by") == 2
    Bundle.open(signed, "full")


def test_the_commands(
    bundle_path: Path,
    key: Path,
    public: Path,
    printed_by: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lira_engine.main import main

    assert f"--sign {key}" in printed_by("build", str(bundle_path), "--threads", "1", "--sign", str(key))
    folder = str(bundle_path / ENGINES)
    assert "as signed by" in printed_by("verify", folder, "--signature", "--key", str(public), "--trust")
    assert re.search(r"[0-9a-f]{12} +trusted", printed_by("verify", folder, "--signature"))
    (bundle_path / ENGINES / "new").write_text("")
    for arguments, reason in (
        (("--signature",), r"cpu-fp32 is not as it was signed \(added: new\): get the folder again"),
        (("--signature", "--trust"), "--trust needs the key"),
        (("--trust",), "--key and --trust go with --signature"),
        (("--key", str(public)), "--key and --trust go with --signature"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["verify", folder, *arguments])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.match(rf"error: .*{reason}", line)


def test_a_killed_signing_leaves_nothing(signed: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written whole or not at all, beside the old one."""
    before = (signed / ENGINES / "model.sig").read_bytes()
    shutil.copytree(signed, signed.with_name("copy"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        build(signed, threads=1, signer=Signer.load(key))
    assert (signed / ENGINES / "model.sig").read_bytes() == before
    assert not list((signed / ENGINES).glob(".*"))
