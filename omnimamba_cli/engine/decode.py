"""From a prefix to tokens: text, whose rows end one by one, and pictures of a fixed length.

On CUDA a merged model's steps are recorded and replayed, see decoder.py. Everywhere else the loops here call one step
after another, see steps.py.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from omnimamba_cli.config import SamplingConfig
from omnimamba_cli.engine.decoder import WATCHED, Watch, decoder_for
from omnimamba_cli.engine.sampling import check_finite, choose, guided, penalize_repetition, uniforms
from omnimamba_cli.engine.steps import steps_for
from omnimamba_cli.model.omnimamba import OmniMamba
from omnimamba_cli.model.state import InferenceState


@torch.inference_mode()
def decode_text(
    model: OmniMamba,
    prefix: Tensor,
    config: SamplingConfig,
    *,
    steps: int,
    seeds: list[int],
    state: InferenceState | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Text tokens after an embedded prefix (b l d), step by step: lists of (row, token).

    With a state of b rows the prefix continues from there; the state is then used up. A row ends with the end-of-text
    id (which is yielded, too) or after `steps` tokens; its memory is dropped then, and the other rows go on.
    """
    if (decoder := decoder_for(model, "mmu")) is not None:
        yield from decoder.text(model, prefix, config, steps=steps, seeds=seeds, state=state)
        return
    end = model.config.text.eos_id
    state = model.new_state(len(prefix)) if state is None else state
    logits = _checked(model.logits(model(prefix, "mmu", state)[:, -1], "mmu").float(), model)
    following = steps_for(model, "mmu", state)
    rows = torch.arange(len(prefix))
    draws = uniforms(seeds, steps).to(_draw_dtype(prefix.device)) if config.temperature > 0 else None
    penalize = config.repetition_penalty != 1
    seen = torch.zeros(len(prefix), model.config.text.vocab_size, dtype=torch.bool, device=prefix.device)
    for step in range(steps):
        logits[:, model.config.text.base_vocab_size :] = -torch.inf  # an answer is text, never a special token
        if penalize:
            logits = penalize_repetition(logits, seen, config.repetition_penalty)
        tokens = choose(logits, config, None if draws is None else draws[rows, step])
        if penalize:
            seen[torch.arange(len(rows)), tokens] = True
        yield list(zip(rows.tolist(), tokens.tolist(), strict=True))
        alive = (tokens != end).nonzero()[:, 0]
        if len(alive) == 0 or step + 1 == steps:
            return
        if len(alive) < len(rows):
            following.select(alive)
            seen, tokens = seen[alive], tokens[alive]
            rows = rows[alive.cpu()]
        logits = _checked(following(tokens), model)


@torch.inference_mode()
def decode_image(
    model: OmniMamba,
    prefix_ids: Tensor,
    config: SamplingConfig,
    *,
    seeds: list[int],
    copies: int = 1,
    watch: Watch | None = None,
) -> Tensor:
    """Codes (b codes) of pictures from whole prefixes (b / copies, l), each read once and drawn `copies` times.

    With guidance, prefix_ids holds twice as many rows: the captioned ones, then the same number with an empty
    caption; both halves run as one batch and share the code that is drawn. Every few steps `watch` is called with the
    codes drawn so far, (b done) on the CPU.
    """
    if (decoder := decoder_for(model, "t2i")) is not None:
        return decoder.image(model, prefix_ids, config, seeds=seeds, watch=watch)
    twice = config.guidance != 1
    codes = model.config.vq.codes
    state = model.new_state(len(prefix_ids))
    logits = _checked(model.logits(model(model.embed_caption(prefix_ids), "t2i", state)[:, -1], "t2i").float(), model)
    if copies > 1:
        rows = torch.arange(len(prefix_ids), device=logits.device).repeat_interleave(copies)
        logits, state = logits[rows], state.select(rows)
    following = steps_for(model, "t2i", state)
    draws = uniforms(seeds, codes).to(device=logits.device, dtype=_draw_dtype(logits.device))
    chosen = []
    for step in range(codes):
        token = choose(guided(logits, config.guidance) if twice else logits, config, draws[:, step])
        chosen.append(token)
        if watch is not None and (step + 1 == codes or (step + 1) % WATCHED == 0):
            watch(torch.stack(chosen, dim=1).cpu())
        if step + 1 < codes:
            logits = _checked(following(token.repeat(2) if twice else token), model)
    return torch.stack(chosen, dim=1)


def _checked(logits: Tensor, model: OmniMamba) -> Tensor:
    """The same scores. Raises DeviceError where float16 has overflowed on the way to them."""
    if model.dtype == torch.float16:
        check_finite(logits.isfinite().all())
    return logits


def _draw_dtype(device: torch.device) -> torch.dtype:
    # Apple's GPU has no float64
    return torch.float32 if device.type == "mps" else torch.float64
