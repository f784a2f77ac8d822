"""`relay_pb2.py` belongs to `relay.proto`: every message, field, kind and call of either."""

import re
from pathlib import Path

from flower_dhb.peer.wire import relay_pb2 as pb

PROTO = Path(pb.__file__).with_name("relay.proto").read_text(encoding="utf-8")
FIELD = re.compile(
    r"(?:(repeated|optional) )?(map<\w+, \w+>|\w+) (\w+) = (\d+);|"  # a field
    r"(message|enum|oneof) (\w+) \{(\})?|"  # begins a block
    r"(\w+) = (\d+);|"  # a value of an enum
    r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\);|"
    r"(service) \w+ \{|(\})"
)


def written():
    """What the file says: `message.field` by kind and number, and calls by what they take."""
    found, blocks = {}, []
    text = re.sub(r"//.*|reserved [^;]+;", "", PROTO)
    for m in FIELD.finditer(text):
        label, kind, name, number, block, title, empty, value, n = m.groups()[:9]
        rpc, streams, takes, answers, gives, service, end = m.groups()[9:]
        inside = ".".join(b for b in blocks if b is not None)
        if block or service:
            # The fields of a oneof are those of its message.
            blocks.append(None if block == "oneof" or service else title)
            found |= {".".join(b for b in blocks if b): block} if block and title != "kind" else {}
            if empty:
                blocks.pop()
        elif end:
            blocks.pop()
        elif rpc:
            found[rpc] = (bool(streams), takes, bool(answers), gives)
        elif value:
            found[f"{inside}.{value}"] = int(n)
        else:
            found[f"{inside}.{name}"] = (int(number), kind.replace(" ", ""), label or "")
    return found


def generated():
    """The same of the generated code."""
    found = {}
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        found[message.name] = "message"
        for enum in message.enum_types:
            found[f"{message.name}.{enum.name}"] = "enum"
            found |= {f"{message.name}.{enum.name}.{v.name}": v.number for v in enum.values}
        found |= {f"{message.name}.{f.name}": described(f) for f in message.fields}
    for call in pb.DESCRIPTOR.services_by_name["Relay"].methods:
        takes, gives = call.input_type.name, call.output_type.name
        found[call.name] = (call.client_streaming, takes, call.server_streaming, gives)
    return found


def described(field):
    kind = KINDS.get(field.type) or (field.message_type or field.enum_type).name
    repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3
    label = "repeated" if repeated else ""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (KINDS[f.type] for f in field.message_type.fields)
        kind, label = f"map<{key},{value}>", ""
    inside = field.containing_oneof
    if inside is not None and inside.name.startswith("_"):
        label = "optional"
    return field.number, kind, label


KINDS = {
    1: "double", 2: "float", 3: "int64", 4: "uint64", 5: "int32", 6: "fixed64", 7: "fixed32",
    8: "bool", 9: "string", 12: "bytes", 13: "uint32",
}  # fmt: skip


def test_the_generated_code_is_that_of_the_file():
    """If it is not: `make proto`."""
    of_file, of_code = written(), generated()
    assert len(of_file) > 100
    assert of_file == of_code
