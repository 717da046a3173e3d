"""Where a C++ source can be changed for a mutation run, and to what: see tools/mutation.py.

A file is parsed by tree-sitter's C++ grammar, after what it does not know is blanked out in place: preprocessor lines,
branches that the host model does not take, CUDA's qualifiers and the macros of this project. So offsets stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import tree_sitter_cpp
from tree_sitter import Language, Node, Parser

KINDS = (
    "arithmetic",  # an operator: + - * / % << >> & |
    "assignment",  # += to =, and its like
    "bound",  # < and <=, > and >=
    "equality",  # == and !=
    "logic",  # && and ||
    "condition",  # of an if or a ?:, negated
    "constant",  # an integer, one more or one less
    "name",  # row and col, in and out, ...
    "extreme",  # min and max
    "sync",  # a barrier, fence or wait that is dropped
    "statement",  # a call or an assignment that is dropped
)
OTHER_OPERATOR = {
    **{"+": "-", "-": "+", "*": "+", "/": "*", "%": "/", "<<": ">>", ">>": "<<", "&": "|", "|": "&"},
    **{"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&"},
    **{"+=": "=", "-=": "+=", "*=": "="},
}
KIND_OF_OPERATOR = {
    **dict.fromkeys(("+", "-", "*", "/", "%", "<<", ">>", "&", "|"), "arithmetic"),
    **dict.fromkeys(("<", "<=", ">", ">="), "bound"),
    **dict.fromkeys(("==", "!="), "equality"),
    **dict.fromkeys(("&&", "||"), "logic"),
    **dict.fromkeys(("+=", "-=", "*="), "assignment"),
}
PAIRS = (
    *(("row", "col"), ("row0", "col0"), ("rows", "cols"), ("in", "out"), ("m", "n"), ("first_row", "first_col")),
    *(("a_row", "a_col"), ("b_row", "b_col"), ("row_stride", "col_stride"), ("a_stride", "b_stride"), ("a", "b")),
    *(("down", "across"), ("line", "place"), ("line0", "place0"), ("line_end", "place_end"), ("k_begin", "k_end")),
    *(("lane", "warp"), ("group", "t"), ("from", "to"), ("x", "y"), ("i", "j"), ("batch", "width")),
    *(("first", "second"), ("tile_stride", "weight_stride"), ("rows_apart", "threads_across")),
)
OTHER_NAME = {name: other for pair in PAIRS for name, other in (pair, pair[::-1])}
SYNC = re.compile(
    r"(?:__syncthreads|__syncwarp|__threadfence|grid_barrier|cp_async_commit|cp_async_wait(?:<[^;]*>)?)\(\)"
)
# What must be constant when it is compiled; there a mutant is compiled on its own.
CONSTANT = {"template_argument_list", "array_declarator", "enumerator", "alignas_qualifier", "bitfield_clause"}
# What is no code that runs.
EXCLUDED = {
    *("static_assert_declaration", "template_parameter_list", "decltype", "comment", "string_literal"),
    *("preproc_include", "preproc_def", "preproc_call", "sizeof_expression", "attribute_specifier", "ERROR"),
}
QUALIFIERS = re.compile(r"__(?:device|host|global|forceinline|grid_constant|shared)__|\bFASTGAN_INLINE\b")
CALLS = re.compile(r"(?:\b__launch_bounds__|\bFASTGAN_[A-Z_]+)\(")


@dataclass(frozen=True)
class Mutant:
    """One change of one place: `old` at `start` becomes `new`."""

    file: str  # relative to the root of the sources
    kind: str
    start: int
    end: int
    old: str
    new: str
    line: int  # from 1
    function: str  # that it is in, or ""
    before: str  # the changed line or lines, blanks made one
    after: str
    is_constant: bool  # it stands where the compiler must know the value

    @property
    def key(self) -> tuple[str, int, str, str]:
        return self.file, self.start, self.kind, self.new

    def diff(self) -> str:
        return f"{self.file}:{self.line} [{self.kind}]  {self.before}  ->  {self.after}"


@dataclass(frozen=True)
class Site:
    """A mutant and the part of the tree that a run-time choice between old and new takes the place of."""

    mutant: Mutant
    node: Node


@cache
def parser() -> Parser:
    return Parser(Language(tree_sitter_cpp.language()))


def blank(text: str) -> str:
    """As many blanks, and the ends of lines where they are."""
    return re.sub(r"[^\n]", " ", text)


def is_taken(condition: str) -> bool:
    """Whether the host model takes the branch of an #if: just FASTGAN_SIMT is defined."""
    return "FASTGAN_SIMT" in condition and not condition.startswith("ifndef")


def blanked(source: str) -> str:
    """The source without what the grammar of C++ does not know, every offset as it was."""
    lines, branches, continued = [], [], False
    for line in source.splitlines(keepends=True):
        directive = re.match(r"\s*#\s*(\w+)\s*(.*)", line)
        if directive and not continued:
            word, rest = directive.groups()
            if word in ("if", "ifdef", "ifndef"):
                taken = is_taken(f"{word} {rest}")
                branches.append([taken, taken])  # this branch is; one of them was
            elif word in ("elif", "else"):
                taken = not branches[-1][1] and (word == "else" or is_taken(f"{word} {rest}"))
                branches[-1] = [taken, branches[-1][1] or taken]
            elif word == "endif":
                branches.pop()
        keep = not directive and not continued and all(taken for taken, _ in branches)
        continued = bool(directive or continued) and line.rstrip().endswith("\\")
        lines.append(line if keep else blank(line))
    text = "".join(lines)
    text = QUALIFIERS.sub(lambda match: blank(match[0]), text)
    while match := CALLS.search(text):
        end, depth = match.end(), 1
        while depth > 0:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if text[match.start() :].startswith("FASTGAN_SHARED") and text[end] == ";":
            end += 1
        text = text[: match.start()] + blank(text[match.start() : end]) + text[end:]
    return text


def function_of(node: Node | None) -> str:
    """The name of the function that a node is in, lambdas left out."""
    while node is not None and node.type != "function_definition":
        node = node.parent
    name = node.child_by_field_name("declarator") if node is not None else None
    while name is not None and name.type not in ("identifier", "field_identifier", "destructor_name"):
        name = name.child_by_field_name("declarator") or name.child_by_field_name("name")
    return name.text.decode() if name is not None and name.text else ""


def is_constexpr(node: Node) -> bool:
    """Whether a declaration or an if says that what it has is constant."""
    if node.type in ("declaration", "field_declaration"):
        return any(child.type == "type_qualifier" and child.text == b"constexpr" for child in node.children)
    return False


def tree_of(source: str) -> Node:
    return parser().parse(blanked(source).encode()).root_node


def sites(file: str, source: str) -> list[Site]:
    """Every mutant of a file, in the order of the file."""
    data = source.encode()
    found: list[Site] = []

    def add(kind: str, part: Node, new: str, node: Node, constant: bool) -> None:
        start, end = part.start_byte, part.end_byte
        first = data.rfind(b"\n", 0, start) + 1
        last = data.find(b"\n", end)
        last = len(data) if last < 0 else last
        before, after = (
            " ".join((data[first:start] + middle + data[end:last]).decode().split())
            for middle in (data[start:end], new.encode())
        )
        old, line = data[start:end].decode(), part.start_point[0] + 1
        mutant = Mutant(file, kind, start, end, old, new, line, function_of(node), before, after, constant)
        found.append(Site(mutant, node))

    def visit(node: Node, constant: bool) -> None:
        if node.type in EXCLUDED or node.is_missing:
            return
        constant = constant or node.type in CONSTANT or is_constexpr(node)
        for kind, part, new in changes(node):
            add(kind, part, new, node, constant)
        condition = node.child_by_field_name("condition") if node.type == "if_statement" else None
        of_if_constexpr = condition is not None and any(child.type == "constexpr" for child in node.children)
        for child in node.children:
            visit(child, constant or (of_if_constexpr and child == condition))

    visit(tree_of(source), False)
    return found


def changes(node: Node) -> Iterator[tuple[str, Node, str]]:
    """What can be changed at a node: the kind, what part of it, and into what."""
    text = node.text.decode() if node.text else ""
    if node.type in ("binary_expression", "assignment_expression"):
        operator = node.child_by_field_name("operator")
        old = operator.text.decode() if operator and operator.text else ""
        if operator and old in OTHER_OPERATOR:
            new, kind = OTHER_OPERATOR[old], KIND_OF_OPERATOR[old]
            if kind not in ("arithmetic", "logic"):
                yield kind, operator, new
            elif node.text:  # which may bind otherwise than the old one did
                at = operator.start_byte - node.start_byte
                yield kind, node, f"({node.text[:at].decode()}{new}{node.text[at + len(old) :].decode()})"
    elif node.type == "number_literal":
        if (match := re.fullmatch(r"(\d+)(u?)", text)) is not None:
            yield "constant", node, f"{int(match[1]) + 1}{match[2]}"
            if int(match[1]) > 0:
                yield "constant", node, f"{int(match[1]) - 1}{match[2]}"
        elif (match := re.fullmatch(r"0x([0-9a-f]+)u", text)) is not None:
            yield "constant", node, f"0x{int(match[1], 16) + 1:x}u"
    elif node.type in ("identifier", "field_identifier"):
        if text in OTHER_NAME and is_read(node) and is_named_near(node, OTHER_NAME[text]):
            yield "name", node, OTHER_NAME[text]
    elif node.type in ("if_statement", "conditional_expression"):
        condition = node.child_by_field_name("condition")
        value = condition.child_by_field_name("value") if condition and node.type == "if_statement" else condition
        if value is not None and value.text and value.type not in ("declaration", "init_statement"):
            yield "condition", value, f"!({value.text.decode()})"
    elif node.type == "call_expression":
        function = node.child_by_field_name("function")
        match = re.match(r"std::(min|max)\b", text)
        if function and match:
            name = function.text.decode() if function.text else ""
            yield "extreme", function, name.replace(match[1], "min" if match[1] == "max" else "max", 1)
    elif node.type == "expression_statement" and node.named_child_count == 1:
        inner = node.named_children[0]
        if SYNC.fullmatch(text.rstrip(";")):
            yield "sync", node, ";"
        elif inner.type in ("call_expression", "assignment_expression", "comma_expression"):
            yield "statement", node, ";"


def is_named_near(node: Node, name: str) -> bool:
    """Whether the function has that name too, so that there is a chance that it compiles."""
    around: Node | None = node
    while around is not None and around.type != "function_definition":
        around = around.parent
    return around is not None and re.search(rf"\b{name}\b".encode(), around.text or b"") is not None


def is_read(node: Node) -> bool:
    """Whether a name is a value that is read: neither declared nor written to nor a member of an initializer."""
    if node.type == "field_identifier":
        if node.parent is None or node.parent.type != "field_expression":
            return False
        node = node.parent
    parent = node.parent
    if parent is None:
        return False
    if parent.type == "assignment_expression":
        return parent.child_by_field_name("right") == node
    if parent.type == "init_declarator":
        return parent.child_by_field_name("value") == node
    if parent.type == "call_expression":
        return parent.child_by_field_name("function") == node
    return parent.type in (
        *("binary_expression", "argument_list", "subscript_argument_list", "conditional_expression"),
        *("parenthesized_expression", "return_statement", "initializer_list", "unary_expression"),
    )
