"""Records -> documents of tokens, in as many processes as pay.

A text becomes `[bos] tokens <document end>`, all of it learnt from. A conversation becomes what the chat template of
the model makes of it, and what the assistant says is learnt from, through the token that ends its turn (promise D5).
A preference becomes documents in twos: the prompt with the better answer, then with the worse one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import Any, NamedTuple

from pellucid.data.building import Block, Document, block_of
from pellucid.data.preferences import messages_of, ranked
from pellucid.data.records import DROPPED, KEPT, BadRecord, Record
from pellucid.errors import InputError, PellucidError
from pellucid.tokenizer.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"


def text_documents(records: Iterable[Record], tokenizer: Tokenizer) -> Iterator[Document | BadRecord]:
    """Texts as documents. Raises `InputError` for a tokenizer with no token to end them."""
    begin = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    end = document_end(tokenizer)
    for record in records:
        ids = tokenizer.encode(record.content)
        ids[:0] = begin
        ids.append(end)
        yield Document(ids, None, record.place)


def document_end(tokenizer: Tokenizer) -> int:
    """The token after a text: `<|endoftext|>` if it is a control token, else the tokenizer's end of sequence."""
    end = tokenizer.special_tokens.get(END_OF_TEXT, tokenizer.eos_id)
    if end is None:
        raise InputError(
            f"the tokenizer has no token that ends a text: give it {END_OF_TEXT} as a special token, or an eos_token"
        )
    return end


def conversation_documents(records: Iterable[Record], tokenizer: Tokenizer) -> Iterator[Document | BadRecord]:
    """Conversations as documents; a `BadRecord` in the place of one that the chat template cannot show.

    Raises `InputError` for a tokenizer with no token that stops generation.
    """
    stops = tokenizer.stop_ids
    if not stops:
        raise InputError("the tokenizer has no token that ends a turn: give it an eos_token, such as <|im_end|>")
    for record in records:
        try:
            chat = tokenizer.apply_chat_template(record.content["messages"], tools=record.content.get("tools"))
            mask = chat.assistant_mask
        except InputError as error:
            yield BadRecord(record.place, "refused by the chat template", str(error))
            continue
        if any(mask):
            yield Document(*with_ends(chat.ids, mask, stops), record.place)
        else:
            sentence = "nothing in it was said by the assistant, so there is nothing to learn; expected a message"
            yield BadRecord(record.place, "nothing to learn", f"{sentence} with the role 'assistant'")


def pair_documents(records: Iterable[Record], tokenizer: Tokenizer) -> Iterator[list[Document] | BadRecord]:
    """Preferences as documents, of which the answer to the prompt is learnt from; k answers give all their pairs.

    A `BadRecord` in the place of one that the chat template cannot show, or of whose answers none is better.
    """
    for record in records:
        answers, better = ranked(record.content)
        made: list[Document | BadRecord] = []
        for answer in answers:
            messages = {**record.content, "messages": record.content["prompt"] + answer}
            made += conversation_documents([Record(record.place, record.kind, record.format, messages)], tokenizer)
        bad = next((found for found in made if isinstance(found, BadRecord)), None)
        if bad is not None:
            yield bad
            continue
        tools = record.content.get("tools")
        prompt = tokenizer.apply_chat_template(record.content["prompt"], tools=tools, add_generation_prompt=True).ids
        good = [after_prompt(found, prompt) for found in made if isinstance(found, Document)]
        pairs = [(good[i], good[j]) for i, j in better]
        if all(one.ids != other.ids for one, other in pairs) and all(any(document.mask or ()) for document in good):
            yield [answer for pair in pairs for answer in pair]
        else:
            sentence = "as the chat template has them, the answers are equal or empty; mend or remove the record"
            yield BadRecord(record.place, "chosen equals rejected", sentence)


def after_prompt(document: Document, prompt: Sequence[int]) -> Document:
    """The document, of which nothing that belongs to the prompt is learnt from."""
    same = next((n for n, (a, b) in enumerate(zip(document.ids, prompt, strict=False)) if a != b), len(prompt))
    assert document.mask is not None
    mask = [own and place >= same for place, own in enumerate(document.mask)]
    return document._replace(mask=mask)


def with_ends(ids: list[int], mask: list[bool], stops: Sequence[int]) -> tuple[list[int], list[bool]]:
    """The ids and the mask with the token that ends each turn of the assistant.

    A template's own marks may leave it out of the mask. Where the template ends the last turn with nothing that stops
    generation, the first of `stops` is put there, in place of the scaffold behind it, which teaches nothing.
    """
    mask = list(mask)
    for place in range(1, len(ids)):
        if mask[place - 1] and not mask[place] and ids[place] in stops and ids[place - 1] not in stops:
            mask[place] = True
    behind = len(mask) - mask[::-1].index(True)
    if ids[behind - 1] in stops:
        return ids, mask
    return [*ids[:behind], stops[0]], [*mask[:behind], True]


class Kind(NamedTuple):
    """How one kind of record is made into documents: for each record one or more, or what is wrong with it."""

    documents: Callable[[Iterable[Record], Tokenizer], Iterator[Document | list[Document] | BadRecord]]
    masked: bool
    block: int  # characters that a process takes at a time
    worth: int  # characters: with fewer, starting processes takes longer than they save


KINDS = {
    "text": Kind(text_documents, False, 1 << 20, 1 << 25),
    "conversation": Kind(conversation_documents, True, 1 << 16, 1 << 20),
    "preference": Kind(pair_documents, True, 1 << 16, 1 << 20),
}


class Job(NamedTuple):
    """What a process needs to know, as plain data."""

    kind: str
    skip_bad: bool
    definition: dict[str, Any]
    config: dict[str, Any]
    templates: dict[str, str]
    stops: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, kind: str, skip_bad: bool) -> Job:
        return cls(kind, skip_bad, tokenizer.definition, tokenizer.config, tokenizer.templates, tokenizer.more_stops)

    def tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer(self.definition, self.config, self.templates)
        tokenizer.more_stops = self.stops
        return tokenizer


def tokenise(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    kind: str,
    *,
    skip: int = 0,
    skip_bad: bool = False,
    workers: int | None = None,
) -> Iterator[tuple[Block, int]]:
    """Blocks of documents in order, each with the number of characters that it was made of.

    skip: so many records are passed over. workers: processes (None: as many as processors, where there is enough).
    The blocks are the same whatever `workers`. Raises `InputError` for a record that cannot be used, by its place,
    unless `skip_bad`; `PellucidError` when a process is killed.
    """
    for _ in zip(range(skip), records := iter(records), strict=False):
        pass
    wanted = KINDS[kind]
    batches = in_batches(records, wanted.block)
    if workers is None:
        first, most = [], 0
        for batch, size in batches:
            first.append((batch, size))
            most += size
            if most >= wanted.worth:
                break
        workers = (os.cpu_count() or 1) if most >= wanted.worth else 1
        batches = chain(first, batches)
    if workers == 1:
        for batch, size in batches:
            yield encode(batch, tokenizer, kind, skip_bad), size
    else:
        yield from parallel(batches, Job.of(tokenizer, kind, skip_bad), workers)


def in_batches(records: Iterable[Record], characters: int) -> Iterator[tuple[list[Record], int]]:
    """The records in lists of at least so many characters, but for the last, and how many they have."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += size_of(record)
        if size >= characters:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


def size_of(record: Record) -> int:
    if isinstance(record.content, str):
        return len(record.content)
    return sum(len(str(message.get("content"))) for message in messages_of(record.content))


def encode(records: Sequence[Record], tokenizer: Tokenizer, kind: str, skip_bad: bool) -> Block:
    """The documents of these records. Raises `InputError` for one that cannot be used, unless `skip_bad`."""
    documents: list[Document] = []
    counts = Counter[str]()
    for record, document in zip(records, KINDS[kind].documents(records, tokenizer), strict=True):
        if not isinstance(document, BadRecord):
            documents += document if isinstance(document, list) else [document]
        elif skip_bad:
            counts[DROPPED + document.reason] += 1
            counts[KEPT + record.format] -= 1  # the reading has counted it so
        else:
            raise InputError(f"{document}; or leave such records out, counted, with data.skip_bad=true")
    block = block_of(documents, tokenizer.vocab_size)
    block.records = len(records)
    block.counts.update(counts)
    return block


def parallel(batches: Iterable[tuple[list[Record], int]], job: Job, workers: int) -> Iterator[tuple[Block, int]]:
    """`encode` in other processes, in order. Two batches a process are under way, however fast the source is."""
    with ProcessPoolExecutor(workers, initializer=begin_work, initargs=(job,)) as pool:
        waiting: deque[tuple[Future[Block], int]] = deque()
        try:
            for batch, size in batches:
                waiting.append((pool.submit(work, batch), size))
                if len(waiting) >= 2 * workers:
                    yield next_of(waiting)
            while waiting:
                yield next_of(waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def next_of(waiting: deque[tuple[Future[Block], int]]) -> tuple[Block, int]:
    future, size = waiting.popleft()
    try:
        return future.result(), size
    except BrokenProcessPool:
        raise PellucidError(
            "a process that tokenised was killed, perhaps for want of memory: run the same command again, "
            "which goes on from the shards that are whole"
        ) from None


_at_work: tuple[Job, Tokenizer]  # in a process of `parallel`


def begin_work(job: Job) -> None:
    global _at_work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # its own handling of it came along
    threading.Thread(target=leave_with_parent, daemon=True).start()
    _at_work = job, job.tokenizer()


def leave_with_parent() -> None:
    """A parent that is killed cannot end its processes, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def work(records: list[Record]) -> Block:
    job, tokenizer = _at_work
    return encode(records, tokenizer, job.kind, job.skip_bad)
