"""The KV cache of a simulated continuous engine, in blocks: who holds how much, and how much more there is room for.

Those that decode take a token each at every step. What they hold is kept as sums at step 0, so that no step has to
touch them; blocks are counted one by one only where the sums say that it may be tight.
"""

from __future__ import annotations

from foreserve.engines.profile import EngineProfile
from foreserve.engines.simulated_answering import Answering
from foreserve.engines.simulated_prefix import PrefixCache


class KVBlocks:
    """What a step model knows of its sequences' KV blocks. The model moves sequences; this counts."""

    def __init__(self, profile: EngineProfile) -> None:
        self.running: dict[str, Answering] = {}
        """Who has a slot, in the order in which they got it, the last time."""
        self._block = profile.block_tokens
        self._blocks = profile.kv_tokens // profile.block_tokens
        self._cache = PrefixCache() if profile.prefix_caching else None
        self._step = 0  # decode steps since the start
        self._decoding = 0  # how many decode
        self._private = 0  # of those, the tokens that they do not share, as a sum at step 0
        self._reserved = 0  # blocks of those that are prefilled

    def _room(self, steps: int, blocks: int = 0) -> bool:
        """Whether so many more steps of those that decode fit the KV cache, beside `blocks` more."""
        most = self._private + self._decoding * (self._step + steps + self._block - 1)  # each one's last block is begun
        used = self._reserved + blocks + most // self._block + (self._cache.shared if self._cache else 0)
        return used <= self._blocks or self._used(self._step + steps) + blocks <= self._blocks

    def _used(self, step: int) -> int:
        """KV blocks that somebody holds at a decode step, if all go on as they are."""
        block, shared = self._block, self._cache.shared if self._cache is not None else 0
        if block == 1:
            return self._reserved + shared + self._private + self._decoding * step
        private = 0
        for sequence in self.running.values():
            if sequence.zero is not None:
                private -= (sequence.zero + sequence.held * sequence.unit - sequence.prompt - step) // block
        return self._reserved + shared + private

    def _evict(self) -> None:
        """Let go what nobody holds and the others have grown over."""
        cache = self._cache
        if cache is not None and cache.idle and (over := self._used(self._step) + cache.idle - self._blocks) > 0:
            cache.shrink(over)

    def _publish(self, sequence: Answering, cache: PrefixCache) -> None:
        """Put the whole units of its prompt that have been computed into the prefix cache."""
        computed, blocks = sequence.prompt + sequence.made - sequence.todo, sequence.unit // self._block
        while sequence.held < len(sequence.units) and (sequence.held + 1) * sequence.unit <= computed:
            cache.hold(sequence.units[sequence.held], blocks)
            sequence.held += 1
            sequence.reserved -= blocks
            self._reserved -= blocks
