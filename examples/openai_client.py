"""OpenAI's own client against `lira-edge serve`: plain, several turns, LIRA's masks, a stream, an error.

`pip install openai`, then `python openai_client.py http://127.0.0.1:8000 picture.png`.
"""

import base64
import mimetypes
import os
import sys
from pathlib import Path

from openai import BadRequestError, OpenAI

YES_NO = "Is there a fish in the image? Please answer yes or no."


def main(base_url: str, picture: str) -> None:
    # Without --api-key-file the server asks for no key, but the client wants one.
    client = OpenAI(base_url=f"{base_url}/v1", api_key=os.environ.get("LIRA_API_KEY", "none"))
    model = client.models.list().data[0].id
    image = {"type": "image_url", "image_url": {"url": data_uri(picture)}}

    print("# plain")
    question = {"role": "user", "content": [image, {"type": "text", "text": YES_NO}]}
    completion = client.chat.completions.create(model=model, messages=[question])
    print(completion.choices[0].message.content)

    print("# several turns: the picture is encoded once, and the rows of the first turn are kept")
    messages = [
        question,
        {"role": "assistant", "content": completion.choices[0].message.content},
        {"role": "user", "content": "Is there a star in the image? Please answer yes or no."},
    ]
    completion = client.chat.completions.create(model=model, messages=messages)
    usage = completion.usage
    print(completion.choices[0].message.content)
    print(f"{usage.prompt_tokens_details.cached_tokens} of {usage.prompt_tokens} rows were kept")

    print("# masks: the field `lira`")
    question = {"role": "user", "content": [image, {"type": "text", "text": "the orange star"}]}
    completion = client.chat.completions.create(
        model=model, messages=[question], extra_body={"lira": {"task": "refseg"}}
    )
    message = completion.choices[0].message
    for mask in message.lira["masks"]:
        height, width = mask["rle"]["size"]
        print(f"mask {mask['id']}: score {mask['score']:.3f}, box {mask['box']} of {width} x {height}")

    print("# streamed: text and masks in the order in which they are made")
    describe = {"role": "user", "content": [image]}
    stream = client.chat.completions.create(
        model=model,
        messages=[describe],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"lira": {"task": "gcg"}},
    )
    masks = {}
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            print(chunk.choices[0].delta.content, end="", flush=True)
        match getattr(chunk, "lira", None):
            case {"type": "mask", "id": number, "score": score, "rle": rle}:
                masks[number] = (score, rle)
            case {"type": "phrase", "text": text, "mask": number}:
                print(f" [{text}: mask {number}, score {masks[number][0]:.3f}]", end="", flush=True)
        if chunk.usage:
            print(f"\n{chunk.usage.completion_tokens} tokens")

    print("# an error")
    try:
        client.chat.completions.create(model=model, messages=[question], temperature=-1)
    except BadRequestError as error:
        print(error.body["message"])


def data_uri(picture: str) -> str:
    kind = mimetypes.guess_type(picture)[0]
    return f"data:{kind};base64,{base64.b64encode(Path(picture).read_bytes()).decode()}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: openai_client.py URL PICTURE")
    main(*sys.argv[1:])
