"""What is wrong with a data set, found before hours of training: broken, wrong, doubled and mismatched images."""

import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from p2p_jax.data import resemblance
from p2p_jax.data.images import Header
from p2p_jax.data.records import Problem, Record, in_threads, limit
from p2p_jax.data.sources import Source
from p2p_jax.lookup import UserError, shortlist

# Kind of a problem: the heading of its group, in the order of the table.
KINDS = {
    'empty': 'empty files',
    'unreadable': 'files that cannot be read',
    'unpaired': 'files without a partner',
    'size': 'sizes that differ within a pair, or are too small',
    'format': 'depth or channels unlike those of the other files',
    'constant': 'images of one colour',
    'mask': 'masks with values that are not declared',
    'mismatched': 'pairs whose input shows something else than the target',
    'misaligned': 'pairs whose input is shifted',
    'duplicate': 'copies within a split',
    'leakage': 'copies in different splits',
}
_ALIKE = 0.75  # median correlation of input and target above which pairs are judged one by one
_UNLIKE = 0.4  # correlation of a pair that is none
_SURE = 0.8  # correlation that the noise must let a true pair reach
_BETTER = 3.0  # standard deviations by which own pairs fit better than shuffled ones; 10 façades reach 3.1
_CERTAIN = 6.0  # those that prove a shift of the list


@dataclasses.dataclass
class Audit:
    """What was found.

    Attributes:
      problems: each of a kind of `KINDS`.
      examined: examples whose pixels were looked at.
      examples: in all.
      notes: what could not be checked, and why.
    """

    problems: list[Problem]
    examined: int
    examples: int
    notes: list[str] = dataclasses.field(default_factory=list)

    def table(self) -> str:
        """Returns the text for the screen: the problems by kind, at most 10 of each, and a last line that counts."""
        lines = []
        for kind, heading in KINDS.items():
            if group := [problem.message for problem in self.problems if problem.kind == kind]:
                lines.append(f'{kind} ({len(group)}): {heading}{shortlist(group)}')
        lines += [f'note: {note}' for note in self.notes]
        count = f'{len(self.problems) or "no"} problem{"s" * (len(self.problems) != 1)} in {self.examples} examples'
        part = f', of which {self.examined} were looked at' if self.examined < self.examples else ''
        return '\n'.join([*lines, count + part])

    def to_json(self) -> dict:
        """Returns everything, in plain types."""
        problems = [dataclasses.asdict(problem) | {'records': list(problem.records)} for problem in self.problems]
        return {'examples': self.examples, 'examined': self.examined, 'problems': problems, 'notes': self.notes}

    def dropped(self) -> set[str]:
        """Returns the names of the records to leave out if training shall go on."""
        return {name for problem in self.problems for name in problem.records}


def _merged(problems: Iterable[Problem]) -> list[Problem]:
    """Makes one problem of those that say the same, of a file that several examples use."""
    same: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        names = same[key].records if (key := (problem.kind, problem.message)) in same else ()
        same[key] = dataclasses.replace(problem, records=tuple(dict.fromkeys(names + problem.records)))
    return list(same.values())


def _sides(record: Record) -> list[tuple[str, Source]]:
    """The images of a record with their sides, in the order of `Record.sources`."""
    return list(zip(('input', 'target')[-len(record.sources) :], record.sources, strict=True))


def _both(record: Record) -> str:
    return ' and '.join(dict.fromkeys(str(source.whole) for source in record.sources))


def _header_key(source: Source) -> tuple:
    """Equal where one header is enough: the images of one array are alike."""
    return (source.path,) if source.kind in ('mat', 'cifar') else (source.path, source.kind, source.item)


def _header(source: Source) -> Header | Problem:
    try:
        return source.whole.header()
    except UserError as error:
        try:
            empty = source.kind == 'file' and not source.path.stat().st_size
            empty = empty or (source.kind == 'zip' and not source.encoded())
        except (UserError, OSError):
            empty = False
        return Problem('empty' if empty else 'unreadable', str(error))


def _headers(records: Iterable[Record], threads: int | None) -> dict[tuple, Header | Problem]:
    """Reads the headers by `_header_key`; of a feature of a TFDS set three, and all only where these differ."""
    sources = {_header_key(source): source for record in records for source in record.sources}
    features: dict[tuple, list[tuple]] = collections.defaultdict(list)
    for key, source in sources.items():
        if source.kind == 'tfds':
            split, _, feature = source.item.split('/', 2)
            features[source.path, split, feature].append(key)
    known: dict[tuple, Header | Problem] = {}
    for keys in features.values():
        probes = {_header(sources[keys[i * (len(keys) - 1) // 2]]) for i in range(3)}
        if len(probes) == 1:
            known |= dict.fromkeys(keys, probes.pop())
    left = {key: source for key, source in sources.items() if key not in known}
    return known | dict(zip(left, in_threads(_header, left.values(), threads), strict=True))


def measure(
    records: Sequence[Record], *, least: Mapping[str, tuple[int, str]], threads: int | None
) -> tuple[list[Record], list[Problem]]:
    """Reads the headers of a data set, not the pixels.

    Args:
      records: those whose size is known are not opened again.
      least: by split, the pixels that height and width must have, and what asks for them.
      threads: that read at the same time.

    Returns:
      The records that can be opened, with `size`, that of the target's part, and `bits` filled, and the problems:
      empty and unreadable files, sizes, and depth or channels unlike those of most files of that side.
    """
    unknown = [record for record in records if not all(record.size)]
    headers = _headers(unknown, threads)
    count = collections.Counter(
        (side, header.channels, header.bits)
        for side, source in itertools.chain.from_iterable(map(_sides, unknown))
        if isinstance(header := headers[_header_key(source)], Header)
    )
    usual = {side: (channels, bits) for (side, channels, bits), _ in reversed(count.most_common())}
    measured, problems = [], []
    for record in records:
        found: list[tuple[str, str]] = []
        if not all(record.size):
            read = [headers[_header_key(source)] for source in record.sources]
            broken = [header for header in read if isinstance(header, Problem)]
            problems += [dataclasses.replace(problem, records=(record.name,)) for problem in broken]
            known = [header for header in read if isinstance(header, Header)]
            if broken:
                continue
            for (side, source), header in zip(_sides(record), known, strict=True):
                if (header.channels, header.bits) != usual[side]:
                    most = str(Header(0, 0, *usual[side])).split(' ', 1)[1]
                    found.append(('format', f'{source} is {header}; most {side}s are {most}'))
            sizes = [
                source.size or (source.box[2:] if source.box else header.size)
                for source, header in zip(record.sources, known, strict=True)
            ]
            if sizes[0] != sizes[-1]:
                (a, b), (c, d) = sizes
                found.append(('size', f'{record.input} is {a}×{b}, {record.target} is {c}×{d}'))
            record = dataclasses.replace(record, size=sizes[-1], bits=max(header.bits for header in known))
        pixels, why = least.get(record.split or '', (0, ''))
        if min(record.size) < pixels:
            found.append(('size', f'{record.target} is {record.size[0]}×{record.size[1]}, too small for {why}'))
        problems += [Problem(*item, (record.name,)) for item in found]
        measured.append(record)
    return measured, _merged(problems)


@dataclasses.dataclass
class _Look:
    """What is kept of an example whose pixels were seen.

    Attributes:
      record: the example.
      compared: the side by which copies are found: the target, or the input where that is a mask, for many are alike.
      digests: of the pixels, by side.
      spectra: by side, float16 (32, 32); (14, 14) where there is no pair.
      flat: the sides that are of one colour.
      sure: the correlation of the thumbnails that noise lets a true pair reach.
      shift: of the input against the target: down and right in pixels, correlations without and with it.
    """

    record: Record
    compared: str
    digests: dict[str, bytes] = dataclasses.field(default_factory=dict)
    spectra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    flat: set[str] = dataclasses.field(default_factory=set)
    sure: float = 0.0
    shift: tuple[int, int, float, float] | None = None

    @property
    def source(self) -> Source:
        """The image that is compared."""
        return dict(_sides(self.record))[self.compared]

    @property
    def picture(self) -> tuple[bytes, str | None]:
        """Equal for the same pixels in the same split."""
        return self.digests[self.compared], self.record.split


def _foreign(pixels: np.ndarray, values: Sequence[int]) -> str:
    """Returns what to say of the values that a mask, uint8 or uint16, should not have; '' where there are none."""
    foreign = np.ones(np.iinfo(pixels.dtype).max + 1, bool)
    foreign[[value for value in values if value < foreign.size]] = False
    wrong = foreign[pixels]
    found = np.unique(pixels[wrong]).tolist()
    some = ', '.join(map(str, found[:5])) + (f' and {len(found) - 5} more' if len(found) > 5 else '')
    return f'values {some} in {int(wrong.any(-1).sum())} pixels; declared are {list(values)}' if found else ''


def _look(record: Record, mask_values: Sequence[int], mask_side: str) -> tuple[_Look | None, list[Problem]]:
    """Decodes an example once and judges its pixels."""
    # Without a published target the input stands for it.
    sides = _sides(record)[-1:] if record.blind else _sides(record)
    look = _Look(record, 'input' if mask_values and mask_side == 'target' and len(sides) == 2 else 'target')
    whole: dict[Source, np.ndarray] = {}
    greys, problems = [], []
    try:
        for side, source in sides:
            if source.whole not in whole:
                whole[source.whole] = source.whole.read()
            pixels = source.cut(whole[source.whole])
            look.digests[side] = hashlib.blake2b(
                pixels.ravel().data, key=f'{pixels.shape}{pixels.dtype}'.encode()
            ).digest()
            greys.append(resemblance.to_grey(pixels))
            is_mask = bool(mask_values) and side == mask_side
            message = _foreign(resemblance.without_alpha(pixels), mask_values) if is_mask else ''
            if (pixels[::16, ::16] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all():
                look.flat.add(side)
                message = message or ('' if is_mask else f'every pixel is {"/".join(map(str, pixels[0, 0]))}')
            if message:
                problems.append(Problem('mask' if is_mask else 'constant', f'{source}: {message}', (record.name,)))
    except UserError as error:
        return None, [Problem('unreadable', str(error), (record.name,))]
    spectra = [resemblance.spectrum_of(grey) for grey in greys]
    # Sizes that differ are a problem of their own.
    if len(greys) == 2 and greys[0].shape == greys[1].shape and not look.flat:
        look.sure = float(np.prod([resemblance.reliability(*item) for item in zip(greys, spectra, strict=True)])) ** 0.5
        look.shift = resemblance.find_shift(greys[0], greys[1])
    bands = resemblance.SIDE if len(greys) == 2 else resemblance.BANDS
    look.spectra = {side: s[:bands, :bands].astype(np.float16) for (side, _), s in zip(sides, spectra, strict=True)}
    if look.shift:
        down, right, before, after = look.shift
        message = f'{_both(record)}: the input lies (down, right) = ({down}, {right}) pixels off, correlation'
        message += f' {before:.2f} -> {after:.2f} without that'
        problems.append(Problem('misaligned', message, (record.name,), after))
    return look, problems


def _wrong_lists(looks: list[_Look], inputs: np.ndarray, targets: np.ndarray) -> tuple[list[Problem], set[int], str]:
    """Finds whether pairs are pairs at all, as a whole and 50 by 50; returns problems, who is in them, and a note."""
    everything = np.arange(len(looks))
    spread = everything[:: len(looks) // 1000 + 1]
    problems: list[Problem] = []
    wrong: set[int] = set()
    for part in (spread, *np.array_split(everything, max(1, len(looks) // 50))):
        fits = resemblance.surplus(inputs[part], targets[part])
        own = float(fits[:, 0].max())
        kind, k = np.unravel_index(fits.argmax(), fits.shape)
        # What is spread has no neighbours in the list.
        shifted = fits[kind, k] >= max(_CERTAIN, 1.5 * fits[kind, 0]) and (
            part is not spread or len(part) == len(looks)
        )
        first, last = (_both(looks[part[place]].record) for place in (0, -1))
        message = f'from {first} to {last} '
        if shifted:
            message += f'the inputs fit the targets {k if k <= len(part) // 2 else k - len(part):+d} down the list: '
        else:
            message += f'the pairs fit no better than shuffled ones ({own:.1f} standard deviations): '
        message += 'is the list of pairs wrong?'
        if part is spread:
            overall = own
            # Noise alone fits nothing.
            if shifted or (own < _BETTER and sum(look.sure > 0 for look in looks) >= 10):
                return [Problem('mismatched', message, score=own)], set(everything), ''
        elif shifted:
            wrong |= set(part)
            names = tuple(looks[i].record.name for i in part)
            problems.append(Problem('mismatched', message, names, own))
    return problems, wrong, f'; as a whole they fit by {overall:.0f} standard deviations better than shuffled ones'


def _mismatches(looks: list[_Look]) -> tuple[list[Problem], list[str]]:
    """Judges whether the two images of pairs show the same; returns problems and notes."""
    if not looks:
        return [], []
    inputs, targets = (
        np.stack([look.spectra[side] for look in looks]).astype(np.float32) for side in ('input', 'target')
    )
    for spectra in (inputs, targets):
        spectra[:, 0, 0] = 0
    own, others = resemblance.correlations(inputs, targets), resemblance.detail_of(targets)
    judged = np.array([look.sure >= _SURE for look in looks])
    median = float(np.median(own[judged])) if judged.any() else 0.0
    problems: list[Problem] = []
    wrong: set[int] = set()
    notes = []
    if median < _ALIKE:
        few = f', and {len(looks)} are too few, or too few differ, to judge them as a whole'
        if min(len({look.digests[side] for look in looks}) for side in ('input', 'target')) >= 10:
            problems, wrong, few = _wrong_lists(looks, inputs, targets)
        notes = [f'inputs and targets do not correlate (median {median:.2f}): single pairs cannot be judged{few}']
    elif not judged.all():
        notes = [f'in {int((~judged).sum())} pairs noise hides too much to be sure that they match']
    suspects = [i for i in np.argsort(own) if own[i] < 0.98 and i not in wrong and not looks[i].shift][:5000]
    for start in range(0, len(suspects), 500):
        some = suspects[start : start + 500]
        for i, better in zip(some, resemblance.better_fits(inputs[some], targets, others, some), strict=True):
            record, says = looks[i].record, f'the median of all is {median:.2f}'
            if better:
                what, score = better
                where = f'when {what}' if isinstance(what, str) else str(looks[what].record.target)
                says = f'the input fits {where} ({score:.2f})'
            if better or (median >= _ALIKE and judged[i] and own[i] < _UNLIKE):
                message = f'{_both(record)}: correlation {own[i]:.2f}; {says}'
                problems.append(Problem('mismatched', message, (record.name,), float(own[i])))
    return problems, notes


def _links(looks: list[_Look], threads: int | None, notes: list[str]) -> Iterator[tuple[float, int, int, str]]:
    """Yields (similarity, one, other, how) of examples that are copies; adds to the notes what was not compared."""
    usable = [i for i, look in enumerate(looks) if look.compared not in look.flat]
    for how in ('the same example', 'the same picture'):
        groups: dict[tuple, list[int]] = collections.defaultdict(list)
        for i in usable:
            whole = tuple(looks[i].digests.values())
            groups[whole if how == 'the same example' else looks[i].picture[:1]].append(i)
        for members in groups.values():
            first = next((i for i in members if looks[i].record.split != 'train'), members[0])
            for i in set(members) - {first}:
                a, b = looks[first], looks[i]
                # Many inputs may share a target: those of a scene any, the others of a split the same file.
                legal = a.record.scene == b.record.scene or (a.source == b.source and a.picture == b.picture)
                if how == 'the same example' or not legal:
                    yield 1.0, first, i, how
    distinct = sorted({looks[i].picture: i for i in reversed(usable)}.values())
    if not distinct:
        return
    spectra = np.stack(
        [looks[i].spectra[looks[i].compared][: resemblance.BANDS, : resemblance.BANDS] for i in distinct]
    )
    scenes = np.unique([looks[i].record.scene for i in distinct], return_inverse=True)[1]
    found = resemblance.find_candidates(resemblance.detail_of(spectra), scenes)
    if len(found) == resemblance.MOST_CANDIDATES and found[-1][0] > 1:
        notes.append(f'of the pairs of images that may be copies only the likeliest {len(found)} were compared')
    sources = [[looks[distinct[i]].source for i in pair] for _, *pair in found]
    for (_, i, j), score in zip(found, in_threads(resemblance.likeness, sources, threads), strict=True):
        if score >= resemblance.COPY:
            yield min(score, 0.9999), distinct[i], distinct[j], 'nearly the same picture'


def _copies(looks: list[_Look], threads: int | None, notes: list[str]) -> list[Problem]:
    """Reports copies, and which to drop: of different splits that in train, else the later one; adds to the notes."""
    users: dict[tuple, list[int]] = collections.defaultdict(list)
    for i, look in enumerate(looks):
        users[look.picture].append(i)

    def order(link: tuple[float, int, int, str]) -> tuple:
        splits = {looks[i].record.split for i in link[1:3]}
        return len(splits) == 1, 'train' not in splits, -link[0], link[1:]

    problems: list[Problem] = []
    dropped: set[int] = set()
    for score, i, j, how in sorted(_links(looks, threads, notes), key=order):
        one, other = (looks[k] for k in sorted((i, j)))
        leaks = one.record.split != other.record.split
        victim = min(i, j) if leaks and one.record.split == 'train' else max(i, j)
        if {i, j} & dropped:
            continue
        # Nearly the same target is so for all inputs that share it.
        gone = [victim] if score == 1 else users[looks[victim].picture]
        dropped |= set(gone)
        names = ' and '.join(f'{look.source} ({look.record.split})' for look in (one, other))
        classes = ', of different classes' if one.record.label != other.record.label else ''
        message = f'{names}: {how}, similarity {score:.2f}{classes}'
        records = tuple(looks[k].record.name for k in gone)
        problems.append(Problem('leakage' if leaks else 'duplicate', message, records, score))
    return problems


def audit(
    records: Sequence[Record],
    problems: Sequence[Problem],
    *,
    mask_values: Sequence[int],
    mask_side: str,
    threads: int | None,
    sample: int | None,
    progress: Callable[[int, int], None] | None,
) -> Audit:
    """Decodes the images of a data set once each and looks for what is wrong.

    Args:
      records: as `measure` gives them, with splits, before they are cut into tiles.
      problems: that were found already.
      mask_values: the values that masks may have; empty where there are no masks.
      mask_side: 'input' or 'target', which of the two is the mask.
      threads: that decode at the same time.
      sample: look at so many examples only, evenly spread; None looks at all.
      progress: called now and then with the examples done and those to do.

    Returns:
      All problems, those given first. Each image is kept as a spectrum only, of 0.4 kB, or 2 kB in pairs.
    """
    chosen = limit(records, sample)
    looks, found = [], []
    judge = functools.partial(_look, mask_values=mask_values, mask_side=mask_side)
    for done, (look, wrong) in enumerate(in_threads(judge, chosen, threads), 1):
        looks += [look] if look else []
        found += wrong
        if progress and (done % max(1, len(chosen) // 100) == 0 or done == len(chosen)):
            progress(done, len(chosen))
    mismatches, notes = _mismatches([look for look in looks if len(look.spectra) == 2 and not look.flat])
    found += mismatches + _copies(looks, threads, notes)
    if same := sum(len(look.digests) == 2 and len(set(look.digests.values())) == 1 for look in looks):
        notes.append(f'{same} pairs have inputs that equal their targets')
    if len(chosen) < len(records):
        notes.append(f'copies were sought among the {len(chosen)} examples that were looked at')
    everyone = {record.name for record in records} | {name for problem in problems for name in problem.records}
    return Audit(_merged([*problems, *found]), len(chosen), len(everyone), notes)
