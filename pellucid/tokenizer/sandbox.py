"""A model's own chat template (Jinja), rendered in a sandbox, its text and that of the conversation kept apart.

The environment is the one that transformers sets up (its `utils/chat_template_utils.py`), so that a template means here
what it means there; on top of it every way in which Jinja makes a string out of others keeps the origins
(`provenance.py`): concatenation, output, filters, methods, formatting.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache, update_wrapper
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

from pellucid.errors import InputError
from pellucid.tokenizer.provenance import (
    UNKNOWN,
    Traced,
    blurred,
    check_size,
    concat,
    join,
    origins_of,
    text_of,
    to_json,
)

LARGEST_BASE, LARGEST_POWER = 10**6, 64

# The borders that `{% generation %}` writes: a private character, known from others like it by its origin.
BORDER = "\ue000"
GENERATION_BEGINS, GENERATION_ENDS = -2, -3

# Filters that hand on their input's own strings (or no text at all): nothing to follow.
PASSING_FILTERS = {
    "abs", "attr", "batch", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last",
    "length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "round", "select",
    "selectattr", "slice", "sort", "sum", "unique",
}  # fmt: skip
# HTML's escaping makes a string that escapes what is added to it: no template of text needs it.
REFUSED_FILTERS = {"e", "escape", "forceescape", "striptags", "urlize", "xmlattr"}

# What a template may raise while it runs: its own complaints, and Python's about what it tries.
RENDERING_ERRORS = (
    TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, ZeroDivisionError,
    RecursionError,
)  # fmt: skip


def compile_template(source: str) -> jinja2.Template:
    """The compiled template. InputError where it is no Jinja, or needs a tag or filter that is not here."""
    return _compiled(source)


@lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    try:
        return ChatEnvironment().from_string(source)
    except TemplateSyntaxError as error:
        message = f"the chat template cannot be used: {error.message} (line {error.lineno} of it)"
        raise InputError(message) from error


@lru_cache(maxsize=64)
def literals_of(source: str) -> frozenset[str]:
    """The texts that the template itself writes or compares with."""
    tree = ChatEnvironment().parse(source)
    written = {node.data for node in tree.find_all(nodes.TemplateData)}
    return frozenset(written | {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)})


@lru_cache(maxsize=64)
def roles_in(source: str) -> frozenset[str]:
    """The roles that the template compares a message's with: `message.role == "ipython"`."""
    comparisons = ChatEnvironment().parse(source).find_all(nodes.Compare)
    return frozenset(text for node in comparisons if "role" in names_in(node) for text in texts_in(node))


def names_in(node: nodes.Node) -> set[str]:
    """What a comparison is about: `role` in `message.role`, `message['role']` and `role`."""
    keys = {key.arg.value for key in node.find_all(nodes.Getitem) if isinstance(key.arg, nodes.Const)}
    return keys | {key.attr for key in node.find_all(nodes.Getattr)} | {key.name for key in node.find_all(nodes.Name)}


def texts_in(node: nodes.Node) -> set[str]:
    keys = [key.arg for key in node.find_all(nodes.Getitem)]
    texts = [text for text in node.find_all(nodes.Const) if not any(text is key for key in keys)]
    return {text.value for text in texts if isinstance(text.value, str)}


class Rendered(NamedTuple):
    """A template's text, and the stretches of it that stood in `{% generation %}` tags."""

    text: Traced
    generated: list[tuple[int, int]]


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> Rendered:
    """Raises one of RENDERING_ERRORS where the template refuses."""
    bordered = template.render(variables)
    text, origins = str.__str__(bordered), origins_of(bordered)
    pieces, generated, done = [], [], 0
    borders = [match.start() for match in re.finditer(BORDER, text)]
    for end in (border for border in borders if origins[border] < UNKNOWN):
        pieces.append(Traced(text[done:end], origins[done:end]))
        place = sum(map(len, pieces))
        if origins[end] == GENERATION_BEGINS:
            generated.append((place, place))
        else:
            generated[-1] = (generated[-1][0], place)
        done = end + 1
    whole = concat([*pieces, Traced(text[done:], origins[done:])])
    return Rendered(Traced(whole, origins_of(whole)), generated)


class Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: the template says itself what the assistant wrote."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_bordered"), [], [], body).set_lineno(line)

    def _bordered(self, caller: Callable[[], str]) -> str:
        begin, end = (Traced(BORDER, array("q", [border])) for border in (GENERATION_BEGINS, GENERATION_ENDS))
        return concat([begin, caller(), end])


class TracingCodeGenerator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(environment.finalize, (")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write(")))")

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier, frame: Frame) -> None:
        raise TemplateSyntaxError("the tag 'autoescape' has no place in a chat template", node.lineno)


class TemplateNamespace(Namespace):
    """Jinja's `namespace`, without the names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works, as in Jinja
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        check_attribute(name)
        Namespace.__setitem__(self, name, value)


def check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore ({name!r})")


class TemplateDict:
    """`dict(...)` and `dict.fromkeys(...)`, and nothing else of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """transformers' sandbox for chat templates, with origins kept."""

    code_generator_class = TracingCodeGenerator
    concat = staticmethod(concat)
    intercepted_binops = frozenset(["%", "*", "**", "+"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=text_of)
        for name, function in list(self.filters.items()):
            if name in REFUSED_FILTERS:
                del self.filters[name]
            elif name not in PASSING_FILTERS:
                self.filters[name] = blurring(function)
        self.filters.update(
            tojson=to_json,
            string=text_of,
            trim=trim_filter,
            safe=Markup,
            join=join_filter,
            replace=replace_filter,
            indent=indent_filter,
        )
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=raise_exception, strftime_now=strftime_now, dict=TemplateDict(), namespace=TemplateNamespace
        )

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"it reaches for the Python attribute {attribute!r}")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and not (isinstance(obj, Traced) and not hasattr("", attr))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        text = getattr(__obj, "__self__", None)
        if not isinstance(text, str) or not __self.is_safe_callable(__obj):
            return super().call(__context, __obj, *args, **kwargs)
        method = getattr(Traced(text, origins_of(text)), __obj.__name__)  # '-'.join(content) must follow the content
        result = super().call(__context, method, *args, **kwargs)
        if isinstance(result, bytes):  # which would have no origins when they are text again
            raise SecurityError("it turns text into bytes")
        return blurred(result, text, args, kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            check_size(size_of(left) + size_of(right))
            return super().call_binop(context, operator, left, right)
        if operator == "*":
            check_size(max(size_of(left) * size_of(right, 1), size_of(right) * size_of(left, 1)))
        if operator == "**" and not (abs(left) <= LARGEST_BASE and abs(right) <= LARGEST_POWER):
            raise ValueError(f"it reckons {left} ** {right}")
        return blurred(super().call_binop(context, operator, left, right), left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        text = getattr(value, "__self__", None)
        if not isinstance(text, str):
            return None
        plain = super().wrap_str_format(getattr(str.__str__(text), value.__name__))
        return plain and (lambda *args, **kwargs: format_text(self, plain, text, args, kwargs))


def size_of(operand: Any, number: int | None = None) -> int:
    """The length of a text or a list; of a number its value, if `number` is given, else 0."""
    if isinstance(operand, str | list | tuple):
        return len(operand)
    return int(operand) if number is not None and isinstance(operand, int) else 0


def blurring(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result, where it is text, is as untrusted as what went in."""

    given = 1 if hasattr(function, "jinja_pass_arg") else 0  # Jinja's own argument, before those of the template

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return blurred(function(*args, **kwargs), args[given:], kwargs)

    return update_wrapper(wrapped, function)


class Markup(Traced):
    """What `safe` gives: text that escapes, for HTML, what is added to it. Some templates do so without knowing."""

    __slots__ = ()

    def __new__(cls, text: Any, origins: array[int] | None = None) -> Markup:
        text = text_of(text)
        return super().__new__(cls, text, origins_of(text) if origins is None else origins)  # type: ignore[return-value]

    def __add__(self, other: str) -> Markup:
        return Markup(concat([self, escaped(other)])) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Markup:
        return Markup(concat([escaped(other), self])) if isinstance(other, str) else NotImplemented


def escaped(text: str) -> str:
    if isinstance(text, Markup):
        return text
    for char, entity in (("&", "&amp;"), (">", "&gt;"), ("<", "&lt;"), ("'", "&#39;"), ('"', "&#34;")):
        text = replace_filter(text, char, entity)
    return text


@jinja2.pass_environment
def join_filter(environment: jinja2.Environment, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    """Jinja's `join`."""
    if attribute is not None:
        value = (environment.getitem(item, attribute) for item in value)
    return join(text_of(d), map(text_of, value))


def trim_filter(text: Any, chars: str | None = None) -> str:
    """Jinja's `trim`."""
    return text_of(text).strip(chars)


def replace_filter(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    """Jinja's `replace`."""
    text, old, new = text_of(text), text_of(old), text_of(new)
    if not isinstance(text, Traced):
        text = Traced(text, origins_of(text))
    return text.replace(old, new, -1 if count is None else count)


def indent_filter(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """Jinja's `indent`: every line but the first, unless told, and no empty one, unless told."""
    margin = width if isinstance(width, str) else " " * width
    lines = concat([text, "\n"]).splitlines()
    return join(
        "\n",
        (
            margin + line if (number or first) and (line or blank or not number) else line
            for number, line in enumerate(lines)
        ),
    )


def format_text(
    environment: ChatEnvironment, plain: Callable[..., str], text: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """`text.format(...)`: followed for fields with no format of their own, untrusted as a whole for others."""
    formatter = SandboxedFormatter(environment)
    pieces, position = [], 0
    whole = plain(*args, **kwargs)
    args_by_name = len(args) == 1 and isinstance(args[0], Mapping) and not kwargs  # `format_map`, maybe
    for literal, field, spec, conversion in formatter.parse(str.__str__(text)):
        pieces.append(literal)
        if field is None:
            continue
        if spec or conversion or isinstance(text, Traced) or args_by_name:
            return blurred(whole, text, args, kwargs)
        if not field:
            field, position = str(position), position + 1
        pieces.append(text_of(formatter.get_field(field, args, kwargs)[0]))
    return concat(pieces) if not isinstance(text, Traced) else blurred(whole, text)


def raise_exception(message: str) -> None:
    raise TemplateError(message)


def strftime_now(pattern: str) -> str:
    return blurred(datetime.now().strftime(pattern), pattern)
