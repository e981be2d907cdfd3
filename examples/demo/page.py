# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A page in the browser: one image, several adapters on one frozen ViT, their answers side by side.

    make web                            # or, where gradio is installed:
    python examples/demo/app.py

It listens on this machine alone, needs no network and sends nothing anywhere. More: docs/demo.md.
"""

import os
import sys
from pathlib import Path
from typing import Any

from gated_prompt import GatedPromptError
from gated_prompt.command_line import CommandLine
from gated_prompt.sharing.backbone import quiet_loading
from gated_prompt.shipped import SHIPPED_BACKBONE

from .adapters import ADAPTERS, Collection, load_collection
from .pictures import MEGABYTES, picture_of_attention, picture_of_gates, read_image

TITLE = "One frozen ViT, several adapters"
ABOUT = """Each adapter is a few learned prompt tokens and a head, some thousand numbers beside one frozen backbone.
All that you choose read your image **in one mixed batch**; each answers in its own classes, whatever it sees."""
ASK = "Drop an image, or click one of the examples."
CHOOSE = "Choose at least one adapter."
TOKENS = [("prompts (mean)", "prompts"), ("CLS", "cls")]
SAMPLES = Path(__file__).parent / "samples"
EXAMPLES = ("digit-2.png", "digit-5.png", "digit-6.png", "square.png", "cross.png", "star.png")
CSS = ".gradio-container {max-width: 1280px !important; margin: 0 auto !important}"


def answer(
    collection: Collection, path: str | None, names: list[str], token: str, block: int
) -> tuple[str, dict[str, Any]]:
    """A message, and what to show for each adapter: its probabilities and the picture of its attention.

    Faults of the visitor's file come back as the message.
    """
    if not names:
        return CHOOSE, {}
    if path is None:
        return ASK, {}
    try:
        image = read_image(Path(path))
        scores = collection.predict(image, names)
        maps = {name: collection.attention(image, name) for name in names}
        pictures = {
            name: None if look is None else picture_of_attention(look, image, token, block)
            for name, look in maps.items()
        }
    except GatedPromptError as error:
        return f"**This did not work.** {error}", {}
    sides = sorted({collection.pixels(image, name).shape[-1] for name in names})
    sizes, many = " and ".join(f"{side} x {side}" for side in sides), "s" if len(names) > 1 else ""
    message = f"{Path(path).name}, read as {sizes} pixels by {len(names)} adapter{many} in one batch."
    if len(sides) > 1:
        message = message.replace("in one batch", "in one batch for each size")
    return message, {name: (scores[name], pictures[name]) for name in names}


def build_page(collection: Collection) -> Any:
    """The page as `gradio.Blocks`."""
    import gradio as gr

    known = collection.adapters
    blocks = collection.model.get_base_model().config.num_hidden_layers

    def show(path: str | None, names: list[str], token: str, block: int) -> list[Any]:
        names = [name for name in known if name in names]  # in the order of the columns
        message, shown = answer(collection, path, names, token, block)
        seen = read_image(Path(path)) if path and shown else None
        updates: list[Any] = [message, gr.update(value=seen, visible=seen is not None)]
        for name in known:
            scores, picture = shown.get(name, (None, None))
            updates += [gr.update(visible=name in names), scores, picture]
        keys = {collection.residents[name].key: name for name in names if collection.has_gates(name)}
        return [*updates, picture_of_gates(collection.model, keys) if keys else None]

    plain: dict[str, Any] = {"show_label": False, "buttons": [], "format": "png", "interactive": False}
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {TITLE}\n{ABOUT}")
        with gr.Row():
            with gr.Column(scale=1, min_width=270):
                file = gr.File(label="Image", height=130, elem_id="file")
                preview = gr.Image(elem_id="preview", height=200, visible=False, **plain)
                samples = [[str(SAMPLES / name)] for name in EXAMPLES]
                examples = gr.Dataset(components=[gr.Image(visible=False)], samples=samples, label="Examples")
                chosen = gr.CheckboxGroup(list(known), value=list(known), label="Adapters")
                token = gr.Radio(TOKENS, value="prompts", label="Attention of")
                block = gr.Slider(0, blocks - 1, value=blocks - 1, step=1, label="in block")
            with gr.Column(scale=3, min_width=600):
                message = gr.Markdown(ASK, elem_id="message")
                outputs: list[Any] = [message, preview]
                with gr.Row(equal_height=False):
                    for name, adapter in known.items():
                        with gr.Column(min_width=180) as column:
                            gr.Markdown(_heading(name, len(adapter.class_names), adapter.accuracy))
                            label = gr.Label(
                                num_top_classes=3, show_label=False, show_heading=False, elem_id=f"scores-{name}"
                            )
                            picture = gr.Image(elem_id=f"attention-{name}", **plain)
                        outputs += [column, label, picture]
                gr.Markdown("### What each adapter has learned, block by block")
                outputs.append(gr.Image(elem_id="gates", **plain))
        inputs = [file, chosen, token, block]
        examples.click(lambda sample: sample[0], examples, file, api_visibility="private")
        changes = [page.load, file.change, chosen.change, token.change, block.change]
        # A change while an answer is under way is answered next, not dropped.
        gr.on(changes, show, inputs, outputs, trigger_mode="always_last", api_visibility="private")
    return page


def _heading(name: str, classes: int, accuracy: float | None) -> str:
    measured = "" if accuracy is None else f", {accuracy:.1%} right on its test part"
    return f"### {name}\n{classes} classes{measured}"


def launch(page: Any, port: int | None = None) -> str:
    """Serve the page on this machine alone, beside what runs here, and return its address."""
    import gradio as gr

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # the visitor's own
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        allowed_paths=[str(SAMPLES)],
        max_file_size=f"{MEGABYTES}mb",  # the server stops reading there
        footer_links=[],
        theme=gr.themes.Default(primary_hue="blue", **fonts),
        css=CSS,
    )
    return str(address)


def main(argv: list[str] | None = None) -> None:
    parser = CommandLine(description=__doc__)
    parser.add_argument(
        "--backbone",
        type=Path,
        default=SHIPPED_BACKBONE,
        help="folder of a ViT with its image processor; default: the small ViT of this repository",
    )
    parser.add_argument(
        "--adapters",
        type=Path,
        default=ADAPTERS,
        help="folder with a subfolder for each adapter; default: digits, objects and shapes",
    )
    parser.add_argument("--port", type=int, help="port on 127.0.0.1; default: the first free one from 7860")
    try:
        args = parser.parse_args(argv)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
        require_gradio()
        quiet_loading()
        collection = load_collection(args.backbone, args.adapters)
        for name, reason in collection.skipped.items():
            print(f"not shown: {name}: {reason}", flush=True)
        page = build_page(collection)
        print(f"The page is at {launch(page, args.port)} (Ctrl+C stops it).", flush=True)
    except (GatedPromptError, OSError) as error:  # OSError: no such backbone, or the port is taken
        sys.exit(f"error: {error}")
    page.block_thread()


def require_gradio() -> None:
    """Check that gradio is installed.

    Raises:
        GatedPromptError: it is not.
    """
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise GatedPromptError(
            "the page needs gradio; start it with `make web`, or pip install 'gated-prompt[demo]'"
        ) from error
