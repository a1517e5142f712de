#!/usr/bin/env bash
# Runs the tests of examples/ with the real tools that the package index lacks, each in an environment of its own.
#
#     tests/examples/tools.sh PYTHON FOLDER      (make test-examples)
#
# Needs a network, unless X_ANYLABELING_SERVER and LABEL_STUDIO_BACKEND name checkouts. FOLDER keeps what was made.
set -euo pipefail
python=$1
folder=$(mkdir -p "$2" && cd "$2" && pwd)
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1

checkout() { # REPOSITORY COMMIT
  local there=$folder/${1##*/}
  [ -d "$there" ] || git clone --quiet "https://github.com/$1" "$there"
  git -C "$there" checkout --quiet "$2"
  echo "$there"
}

environment() { # NAME REQUIREMENT...
  local there=$folder/$1
  shift
  [ -d "$there" ] || "$python" -m venv "$there"
  "$there/bin/pip" install "$@"
  echo "$there/bin/python"
}

: "${X_ANYLABELING_SERVER:=$(checkout CVHub520/X-AnyLabeling-Server 70599dc41e1d8fcb997636f0032d8403631bdc9b)}"
: "${LABEL_STUDIO_BACKEND:=$(checkout HumanSignal/label-studio-ml-backend d02cedf35d0e5d21f2f437c120174c62f66bf57a)}"
X_ANYLABELING_PYTHON=$(environment x-anylabeling 'fastapi[standard]' loguru opencv-python-headless packaging requests)
environment label-studio 'Flask>2.3' colorama label-studio-sdk==2.1.2 requests semver >/dev/null
LABEL_STUDIO_PYTHON=$(environment label-studio --no-deps "$LABEL_STUDIO_BACKEND")

export X_ANYLABELING_SERVER X_ANYLABELING_PYTHON LABEL_STUDIO_PYTHON
exec "$python" -m pytest -rs "$(dirname "${BASH_SOURCE[0]}")"
