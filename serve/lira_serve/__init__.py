"""An HTTP server for one bundle: OpenAI's chat completions with masks, segmentation, and a page."""
