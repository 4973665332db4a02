"""Answer the page's requests: check them, sample, and describe the results in HTML, with all text of a user escaped."""

import base64
import io
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, Template
from PIL import Image

from dpdmd.config.sampling_flags import MAX_SEED
from dpdmd.demo.comparison import PIXELS, Comparison, ModelImages
from dpdmd.sampling.sampler import SamplerSettings
from dpdmd.utils import out_of_memory
from dpdmd.utils.logging import logger
from dpdmd.utils.text_files import check_prompt
from dpdmd.utils.wording import counted

MAX_LETTERS = 2000  # of a prompt; 512 tokens of T5 are about as many
MAX_IMAGES = 16
LOSSLESS_PIXELS = 256 * 256  # of an image that is sent as PNG; a larger one is sent as WebP, a tenth of the size
TITLE = "Teacher and students, from the same noises"
ABOUT = f"""Each column starts from one noise. Click an image, or press Space on it, to enlarge it.
{PIXELS.capitalize()}: root mean square difference of two images' pixels (0 to 1), mean over all pairs; it sees colours
and positions, not content. CLIP and DINO diversity: 1 - mean cosine of their features over all pairs."""
_MODEL = """
<section class="model" aria-label="{{ name }}"><h2>{{ name }}</h2><p>{{ how }}</p>
{% if images %}<div class="images">
{% for seed, source in images %}<figure><label><input type="checkbox" aria-label="enlarge {{ name }}, seed {{ seed }}">
<img src="{{ source }}" alt="{{ name }}, seed {{ seed }}"{% if small %} class="small"{% endif %}></label>
<figcaption>seed {{ seed }}</figcaption></figure>
{% endfor %}</div>{% endif %}</section>
"""
_STATUS = """
<p role="status"{% if error %} class="error"{% endif %}>{{ text }}
{% if prompt %}<q class="prompt">{{ prompt }}</q>{% endif %}</p>
"""


@cache
def _template(source: str) -> Template:
    return Environment(autoescape=True, trim_blocks=True).from_string(source)


def title() -> str:
    """Return the HTML of the heading."""
    return _template("<h1>{{ text }}</h1>").render(text=TITLE)


def about() -> str:
    """Return the HTML of the explanation below the images."""
    return _template('<p class="about">{{ text }}</p>').render(text=ABOUT)


def status(text: str, *, prompt: str = "", error: bool = False) -> str:
    """Return the HTML of the status line."""
    return _template(_STATUS).render(text=text, prompt=prompt, error=error)


def model_row(
    name: str, settings: SamplerSettings, result: ModelImages | None = None, seeds: Sequence[int] = ()
) -> str:
    """Return the HTML of one model: its name and how it is sampled, and its images if there are any."""
    how = [f"{len(settings.sigmas) - 1} steps", f"guidance {settings.guidance_scale:g}"]
    images: list[tuple[int, str]] = []
    if result:
        how += [f"{result.seconds:.2f} s for {counted(len(seeds), 'image')}"]
        how += [f"{measure} {value:.3f}" for measure, value in result.diversity.items()]
        images = list(zip(seeds, map(_data_uri, result.images), strict=True))
    small = settings.width < 256  # is enlarged, with sharp pixels
    return _template(_MODEL).render(name=name, how=" · ".join(how), images=images, small=small)


def _data_uri(image: Image.Image) -> str:
    """Return an image as text: no image is written to disk, and none has an address that others could request."""
    kind, options = ("PNG", {}) if image.width * image.height <= LOSSLESS_PIXELS else ("WEBP", {"quality": 92})
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def read_request(prompt: Any, num_images: Any, first_seed: Any) -> tuple[str, list[int]]:
    """Check the values of a request, which a program may send as well as the page. Return the prompt and the seeds.

    Raises:
        ValueError: one line for the page.
    """
    prompt = str(prompt or "").strip()
    check_prompt(prompt, "the prompt")
    if len(prompt) > MAX_LETTERS:
        raise ValueError(f"the prompt has {len(prompt):,} letters: at most {MAX_LETTERS:,} are allowed")
    count = _whole_number("the number of images", num_images, 1, MAX_IMAGES)
    first = _whole_number("the first seed", first_seed, 0, MAX_SEED + 1 - count)
    return prompt, list(range(first, first + count))


def _whole_number(name: str, value: Any, least: int, most: int) -> int:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and least <= value <= most and value == int(value)):
        raise ValueError(f"{name} must be a whole number, {least} to {most}")
    return int(value)


def respond(comparison: Comparison, prompt: Any, num_images: Any, first_seed: Any) -> Iterator[list[Any]]:
    """Yield the status line and the rows of all models, once more after each model."""
    names = [model.name for model in comparison.models]
    rows: list[Any] = [model_row(model.name, model.sampler.settings) for model in comparison.models]
    try:
        prompt, seeds = read_request(prompt, num_images, first_seed)
        yield [status("Sampling", prompt=prompt), *rows]
        with out_of_memory.explained(
            "ask for fewer images, or restart the demo with a lower --batch_size or with --bf16"
        ):
            for done, result in enumerate(comparison.sample(prompt, seeds), 1):
                settings = comparison.models[result.index].sampler.settings
                rows[result.index] = model_row(names[result.index], settings, result, seeds)
                text = "Images of" if done == len(names) else f"{done} of {len(names)} models done:"
                yield [status(text, prompt=prompt), *rows]
    except (ValueError, MemoryError) as error:
        logger.warning("a request ended with an error: %s", error)
        yield [status(str(error), error=True), *rows]
