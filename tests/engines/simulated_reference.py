"""Continuous batching step by step and token by token: slow, plain, and what the fast model must agree with."""

from foreserve.engines.simulated_cost import DecodeCost, PrefillCost


class Plain:
    def __init__(self, id, prompt, output, every=None, units=(), unit=0, ready=0.0):
        self.id, self.prompt, self.output, self.every, self.units, self.unit = id, prompt, output, every, units, unit
        self.ready = ready
        self.made = self.given = self.todo = 0
        self.next = 1
        self.held = []
        self.cached = None
        self.phase = "waiting"


class Reference:
    """`arrivals`: (time, Plain) in order; `cancels`: (time, id). `run` gives (time, id, tokens, end) in order."""

    def __init__(self, profile, arrivals, cancels=()):
        self.profile = profile
        self.prefill, self.decode = PrefillCost(profile.prefill), DecodeCost(profile.decode)
        self.capacity = profile.kv_tokens // profile.block_tokens
        self.happens = sorted(
            [(at, 1, order, each) for order, (at, each) in enumerate(arrivals)]
            + [(at, 0, order, id) for order, (at, id) in enumerate(cancels)],
            key=lambda event: event[:3],
        )
        self.waiting, self.running, self.out = [], [], []
        self.cache = {}  # hash -> (blocks, holders)
        self.lru = []
        self.preemptions = 0
        self.size = 0

    # --- KV

    def blocks(self, tokens):
        return -(-tokens // self.profile.block_tokens)

    def used(self, more=0):
        """Blocks that somebody holds, if those that decode made `more` tokens more."""
        total = sum(blocks for blocks, holders in self.cache.values() if holders)
        for each in self.running:
            own = each.prompt + each.made - len(each.held) * each.unit
            if each.phase == "decoding":
                total += self.blocks(own + more)
            else:
                total += self.blocks(own + 1)
        return total

    def evict(self):
        idle = sum(self.cache[unit][0] for unit in self.lru)
        while self.lru and self.used() + idle > self.capacity:
            unit = self.lru.pop(0)
            idle -= self.cache.pop(unit)[0]

    def hold(self, each, unit):
        blocks, holders = self.cache.get(unit, (each.unit // self.profile.block_tokens, 0))
        if unit in self.lru:
            self.lru.remove(unit)
        self.cache[unit] = (blocks, holders + 1)
        each.held.append(unit)

    def free(self, each):
        self.evict()
        for unit in reversed(each.held):
            blocks, holders = self.cache[unit]
            self.cache[unit] = (blocks, holders - 1)
            if holders == 1:
                self.lru.append(unit)
        each.held = []
        self.running.remove(each)

    # --- steps

    def run(self):
        now = 0.0
        while self.happens or self.running or self.waiting:
            self.happen(now)
            parts = self.plan(now)
            decoding = [each for each in self.running if each.phase == "decoding"]
            if not parts and not decoding:
                times = [at for at, *_ in self.happens[:1]] + [each.ready for each in self.waiting[:1]]
                if not times:
                    break
                now = max(now, min(times))
                continue
            whole = self.profile.max_batched_tokens is None
            seconds = 0.0
            if parts:
                tokens = sum(part for _, part in parts)
                before = sum(part * (each.prompt + each.made - each.todo) for each, part in parts) / tokens
                seconds = self.prefill.at(tokens, before)
            if decoding and not (parts and whole):
                mean = sum(each.prompt + each.made for each in decoding) / len(decoding)
                share = self.profile.mixing if parts else 1.0
                seconds += share * self.decode.line(len(decoding)).at(mean)
            size = sum(part for _, part in parts) + (0 if parts and whole else len(decoding))
            if size != self.size:
                seconds += self.profile.change_s
            self.size = size
            self.happen_during(now + seconds, whole and bool(parts))
            now += seconds
            for each, part in parts:
                if each in self.running:
                    self.compute(each, part)
            if not (parts and whole):
                for each in decoding:
                    if each in self.running:
                        each.made += 1
            self.put_out(now)
        return self.out

    def happen(self, now):
        while self.happens and self.happens[0][0] <= now:
            at, is_arrival, _, who = self.happens.pop(0)
            self.tell(at, is_arrival, who)

    def happen_during(self, end, whole):
        """Cancels within a step take effect at once; arrivals wait for its end."""
        while self.happens and self.happens[0][0] < end:
            at, is_arrival, _, who = self.happens.pop(0)
            self.tell(at, is_arrival, who)

    def tell(self, at, is_arrival, who):
        if is_arrival:
            self.waiting.append(who)
            return
        for each in [*self.running, *self.waiting]:
            if each.id == who:
                self.out.append((at, who, each.made - each.given, "cancelled"))
                if each in self.running:
                    self.free(each)
                else:
                    self.waiting.remove(each)

    def plan(self, now):
        profile = self.profile
        while any(each.phase == "decoding" for each in self.running) and self.used(1) > self.capacity:
            newest = self.running[-1]
            self.free(newest)
            newest.phase = "waiting"
            newest.todo = 0
            self.waiting.insert(0, newest)
            self.preemptions += 1
        decoding = sum(each.phase == "decoding" for each in self.running)
        whole = profile.max_batched_tokens is None
        left = 1 if whole else profile.max_batched_tokens - decoding
        parts = []
        for each in self.running:
            if each.phase == "prefilling" and left > 0:
                parts.append((each, min(each.todo, left)))
                left -= parts[-1][1]
        while self.waiting and left > 0 and len(self.running) < profile.slots and self.waiting[0].ready <= now:
            each = self.waiting[0]
            if not self.join(each):
                break
            self.waiting.pop(0)
            parts.append((each, each.todo if whole else min(each.todo, left)))
            left -= parts[-1][1]
        return parts

    def join(self, each):
        tokens = each.prompt + each.made
        hits = []
        if self.profile.prefix_caching and each.units:
            self.evict()
            for unit in each.units:
                if unit not in self.cache:
                    break
                hits.append(unit)
        idle = sum(self.cache[unit][0] for unit in hits if not self.cache[unit][1])
        blocks = self.blocks(tokens + 1 - len(hits) * each.unit)
        if self.running and self.used(1) + blocks + idle > self.capacity:
            return False
        for unit in hits:
            self.hold(each, unit)
        block = self.profile.block_tokens
        known = min(len(hits) * each.unit, (tokens - 1) // block * block)
        each.todo = tokens - known
        each.cached = min(known, each.prompt) if each.cached is None else each.cached
        each.phase = "prefilling"
        self.running.append(each)
        return True

    def compute(self, each, part):
        each.todo -= part
        if self.profile.prefix_caching:
            computed = each.prompt + each.made - each.todo
            while len(each.held) < len(each.units) and (len(each.held) + 1) * each.unit <= computed:
                self.hold(each, each.units[len(each.held)])
        if not each.todo:
            each.phase = "decoding"
            each.made += 1

    def put_out(self, now):
        for each in list(self.running):
            if each.phase != "decoding":
                continue
            if each.made >= each.output:
                self.out.append((now, each.id, each.output - each.given, "stop"))
                self.free(each)
            elif each.made >= each.next:
                self.out.append((now, each.id, each.made - each.given, None))
                each.given = each.made
                each.next = each.output if each.every is None else min(each.output, each.made + each.every)
