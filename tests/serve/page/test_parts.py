"""The page's parts by themselves, in a real browser."""

from __future__ import annotations

import base64

import numpy as np
from pycocotools import mask as coco

from lira_runtime.draw import PALETTE


def test_masks_are_decoded_as_pycocotools_does(fake, open_page):
    random = np.random.default_rng(3)
    masks = [
        random.random((h, w)) < share
        for h, w, share in ((1, 1, 1.0), (7, 5, 0.5), (64, 90, 0.02), (3, 40, 0.9))
    ]
    masks += [np.zeros((9, 4), bool), np.ones((5, 6), bool)]
    large = np.zeros((3000, 2000), bool)
    large[100:2900, 37:1950] = random.random((2800, 1913)) < 0.999
    masks.append(large)
    encoded = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    sent = [{"size": one["size"], "counts": one["counts"].decode()} for one in encoded]
    tab = open_page(fake.url)
    found = tab.evaluate(
        """async (all) => {
          const { BinaryMask } = await import("/page/rle.js");
          return all.map((rle) => {
            const mask = new BinaryMask(rle);
            const rows = mask.rows();
            let agree = 0;  // has() asks the runs, rows() paints them
            for (let i = 0; i < rows.length; i += 7) {
              agree += mask.has(i % mask.width, Math.floor(i / mask.width)) === (rows[i] === 1);
            }
            let text = "";
            const some = 8192;
            for (let i = 0; i < rows.length; i += some) {
              text += String.fromCharCode(...rows.subarray(i, i + some));
            }
            return [mask.area, agree === Math.ceil(rows.length / 7), btoa(text)];
          });
        }""",
        sent,
    )
    for mask, one, (area, agrees, rows) in zip(masks, encoded, found, strict=True):
        decoded = np.frombuffer(base64.b64decode(rows), np.uint8).reshape(mask.shape)
        assert (decoded == coco.decode(one)).all() and area == mask.sum() and agrees
    refused = tab.evaluate(
        """async (bad) => {
          const { runEnds } = await import("/page/rle.js");
          const told = (rle) => { try { runEnds(rle); return ""; } catch (error) { return error.message; } };
          return bad.map(told);
        }""",
        [{"size": [2, 2], "counts": "3"}, {"size": [2, 2], "counts": "\x7f"}],
    )
    assert refused == [
        "a mask's counts cover 3 pixels, expected 2 x 2",
        "unexpected character in a mask's counts at 0",
    ]


def test_outlines_enclose_exactly_the_pixels(fake, open_page):
    mask = np.random.default_rng(5).random((23, 31)) < 0.5
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    tab = open_page(fake.url)
    curves = tab.evaluate(
        """async (rle) => {
          const { BinaryMask } = await import("/page/rle.js");
          const { edges, corners } = await import("/page/outlines.js");
          return edges(new BinaryMask(rle)).map(corners);
        }""",
        {"size": encoded["size"], "counts": encoded["counts"].decode()},
    )
    row, column = np.mgrid[:23, :31] + 0.5
    inside = np.zeros(
        mask.shape, bool
    )  # even-odd rule: a ray to the right crosses upright sides an odd number of times
    for curve in curves:
        points = np.array(curve).reshape(-1, 2)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
            assert x0 == x1 or y0 == y1
            inside ^= (x0 == x1) & (column < x0) & (min(y0, y1) < row) & (row < max(y0, y1))
    assert (inside == mask).all()


def test_events_are_read_however_the_network_cuts_them(fake, open_page):
    text = 'event: a\r\ndata: é1\r\ndata: 2\r\n\r\n: waiting\n\ndata:{"x":1}\n\nevent: none\n\ndata: lost'
    tab = open_page(fake.url)
    found = tab.evaluate(
        """async (text) => {
          const { serverSentEvents } = await import("/page/sse.js");
          const bytes = new TextEncoder().encode(text);
          const read = async (size) => {
            const all = [];
            const body = new ReadableStream({
              start(controller) {
                for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
                controller.close();
              },
            });
            for await (const event of serverSentEvents(body)) all.push(event);
            return all;
          };
          return [await read(1), await read(2), await read(1000)];
        }""",
        text,
    )
    wanted = [
        {"event": "a", "data": "é1\n2"},
        {"comment": "waiting"},
        {"event": "message", "data": '{"x":1}'},
    ]
    assert found == [wanted, wanted, wanted]


def test_colours_are_those_of_the_pictures_that_the_runtime_draws(fake, open_page):
    tab = open_page(fake.url)
    found = tab.evaluate("import('/page/palette.js').then((colors) => colors.PALETTE)")
    assert found == ["#{:02x}{:02x}{:02x}".format(*ink) for ink in PALETTE]
