#!/usr/bin/env bash
# curl against `lira-edge serve`: health, models, masks of a text, a chat, a stream.
#
#     examples/curl.sh http://127.0.0.1:8000 picture.png
#
# With --api-key-file: LIRA_API_KEY=KEY examples/curl.sh ...
set -euo pipefail
url=${1:?usage: curl.sh URL PICTURE}
picture=${2:?usage: curl.sh URL PICTURE}

ask() {
  curl --fail-with-body --silent --show-error ${LIRA_API_KEY:+--header "Authorization: Bearer $LIRA_API_KEY"} "$@"
  echo
}

# A picture is longer than a command line may be: JSON goes through standard input.
json() { ask --header 'Content-Type: application/json' --data-binary @- "$@"; }
data_uri() { printf 'data:;base64,%s' "$(base64 <"$picture" | tr -d '\n')"; }

echo '# ready'
ask "$url/health/ready"

echo '# models'
ask "$url/v1/models"

echo '# masks of a text, the picture as a file'
ask "$url/v1/segment" --form "image=@$picture" --form 'text=the orange star' --form formats=rle,polygons

echo '# masks of a text, the picture in JSON'
json "$url/v1/segment" <<JSON
{"image": "$(data_uri)", "text": "the orange star", "formats": ["svg"]}
JSON

echo '# a chat'
json "$url/v1/chat/completions" <<JSON
{"messages": [{"role": "user", "content": [
  {"type": "image_url", "image_url": {"url": "$(data_uri)"}},
  {"type": "text", "text": "Is there a fish in the image? Please answer yes or no."}]}]}
JSON

echo '# a stream of text and masks'
json --no-buffer "$url/v1/chat/completions" <<JSON
{"stream": true, "lira": {"task": "gcg"}, "messages": [{"role": "user", "content": [
  {"type": "image_url", "image_url": {"url": "$(data_uri)"}}]}]}
JSON
