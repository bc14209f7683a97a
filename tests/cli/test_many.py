"""Many inputs: lists, folders, patterns, web addresses; what is broken among them; what a run is repeated with."""

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from omnimamba_cli.engine import web_pictures
from omnimamba_cli.errors import InputError
from tests.cli.conftest import FakeSession, Result, Run


def save(path: Path, color: tuple[int, int, int] = (255, 0, 0), size: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), color).save(path)
    return path


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def records(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.out.splitlines()]


def test_a_line_can_have_its_own_question_and_seed(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    lines = [
        '{"image": "a.png", "question": "how many?", "seed": 40, "other": [1]}',
        '{"image": "a.png", "prompt": "what?"}',
        "a.png",
        '{"image": "a.png"}',
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    result = run("caption", "--from", "list.jsonl", "where?", "--temperature", "1", "--seed", "5", "--json")
    asked = {question: seed for question, _, seed in fake.asked}
    assert asked == {"how many?": 40, "what?": 6, "where?": 8}
    assert [(r["question"], r["seed"]) for r in records(result)] == [
        ("how many?", 40),
        ("what?", 6),
        ("where?", 7),
        ("where?", 8),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": "a.png"', "list, line 2: is no JSON object"),
        ('{"question": "what?"}', 'list, line 2: has no "image"'),
        ('{"image": 7}', 'list, line 2: "image" is 7; it must be a text'),
        ('{"image": "a.png", "seed": "7"}', 'list, line 2: "seed" is "7"; it must be a whole number'),
        ('{"image": "a.png", "seed": -1}', "whole number"),
        ('{"image": "a.png", "output": "{sed}"}', "{sed}"),
        ("[" * 5000, "no such file"),
        ('{"a":' * 9000, "is no JSON object"),
    ],
)
def test_a_bad_line_is_named_and_passed_over(
    run: Run, fake: FakeSession, tmp_path: Path, line: str, words: str
) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "list").write_text(f"a.png\n{line}\na.png\n")
    result = run("caption", "--from", "list")
    assert (result.code, result.out) == (6, "a.png\ta red fox\n" * 2)
    assert words in result.err.splitlines()[0]
    assert result.err.endswith("1 of 3 pictures failed\n")


def test_nul_separated_entries_are_names_whatever_they_hold(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    odd = save(tmp_path / '{"image"\n.png')
    (tmp_path / "list").write_bytes(odd.name.encode() + b"\0")
    result = run("caption", "--from", "list", "-0", "--json")
    assert [r["image"] for r in records(result)] == [odd.name]


def test_what_is_longer_than_any_name_is_no_list(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\x00" * 3_000_000)
    result = run("caption", "--from", "list")
    assert result.code == 3
    assert "is this a list?" in result.err


def test_names_never_break_lines_or_columns(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    for name in ("new\nline.png", "tab\there.png", "red\x1b[31m.png"):
        save(tmp_path / name)
    result = run("caption", "new\nline.png", "tab\there.png", "red\x1b[31m.png", "gone\x1b]0;title\x07.png")
    assert result.out == "".join(f"{n}\ta red fox\n" for n in (r"new\nline.png", r"tab\there.png", r"red\x1b[31m.png"))
    assert result.err.splitlines()[0] == r"error: gone\x1b]0;title\x07.png: no such file"
    assert run("caption", "tab\there.png", "new\nline.png", "--dry-run").out == "tab\\there.png\nnew\\nline.png\n"
    exact = run("caption", "tab\there.png", "--json")
    assert json.loads(exact.out)["image"] == "tab\there.png"


@pytest.mark.parametrize("command", ["caption", "generate"])
def test_a_list_that_holds_nul_is_told_once_and_how_to_read_it(
    run: Run, fake: FakeSession, tmp_path: Path, command: str
) -> None:
    (tmp_path / "list").write_bytes(b"a.png\0b.png\0" * 100 + b"\n" + b"c\0\n" * 9)
    result = run(command, "--from", "list")
    assert (result.code, result.out) == (3, "")
    assert result.err.splitlines()[:2] == [
        "error: list, line 1: holds NUL bytes, so this is no list of lines",
        "hint: -0, if its entries end with NUL; a picture is named without --from",
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read_and_one_that_stays_silent_holds_up_nobody(
    run: Run, fake: FakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnimamba_cli.cli.inputs.PIPE_S", 0.2)
    for name in ("silent.png", "written.png"):
        os.mkfifo(tmp_path / name)
    data = save(tmp_path / "a.png", size=400).read_bytes()

    def write() -> None:
        time.sleep(0.05)  # after it is waited for
        with (tmp_path / "written.png").open("wb") as file:
            file.write(data[:100])
            file.flush()
            time.sleep(0.5)  # a writer may take longer than it may take to find one
            file.write(data[100:])

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    result = run("caption", "silent.png", "written.png", "a.png")
    writer.join(5)
    assert (result.code, [line.split("\t")[0] for line in result.out.splitlines()]) == (6, ["written.png", "a.png"])
    assert result.err.splitlines()[0] == "error: silent.png: is a pipe that nobody writes into, for 0.2 s"
    # nor is it one of the pictures of a folder
    whole = run("caption", ".", "--recursive")
    assert (whole.code, whole.out, whole.err) == (0, "./a.png\ta red fox\n", "")


def test_dash_is_stdout_also_as_an_output(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "list").write_text('{"image": "a.png", "output": "-"}\n')
    assert run("caption", "a.png", "-o", "-").out.strip() == "a red fox"
    assert run("caption", "--from", "list", "-q").out == "a.png\ta red fox\n"
    assert run("caption", "a.png", "--append", "-").code == 2
    (tmp_path / "jobs").write_text('{"prompt": "a fox", "output": "-"}\n{"prompt": "a hen"}\n')
    drawn = run("generate", "--from", "jobs", "-q")
    assert (drawn.code, drawn.out) == (6, "a-hen-2.png\n")
    assert 'error: "output" is "-"' in drawn.err
    assert not (tmp_path / "-").exists()


def test_folders_are_opened_up_on_request(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    for name in ("photos/b.png", "photos/a.JPG", "photos/deep/er/c.webp", "photos/.hidden/d.png", "photos/.e.png"):
        save(tmp_path / name)
    (tmp_path / "photos/notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    result = run("caption", "photos", "--recursive")
    assert (result.code, result.err) == (0, "")
    assert [line.split("\t")[0] for line in result.out.splitlines()] == [
        "photos/a.JPG",
        "photos/b.png",
        "photos/deep/er/c.webp",
    ]
    refused = run("caption", "photos")
    assert (refused.code, refused.out) == (3, "")
    assert "--recursive" in refused.err
    assert "holds no picture" in run("caption", "empty", "--recursive").err


def test_a_quoted_pattern_is_opened_up(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c[1].png"):
        save(tmp_path / name)
    names = [line.split("\t")[0] for line in run("caption", "[ab].png", "what?").out.splitlines()]
    assert names == ["a.png", "b.png"]
    # a file that is there is itself, whatever it looks like
    assert run("caption", "c[1].png").out.strip() == "a red fox"
    missing = run("caption", "nothing*.png")
    assert (missing.code, missing.out) == (3, "")
    assert "no file of this pattern" in missing.err


def test_an_answer_goes_into_a_file_of_its_own(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    for name in ("photos/a.png", "photos/b.png"):
        save(tmp_path / name)
    arguments = ["caption", "photos", "--recursive", "-o", "{dir}/{stem}.txt"]
    assert run(*arguments).out == "photos/a.txt\nphotos/b.txt\n"
    assert (tmp_path / "photos/a.txt").read_text() == "a red fox\n"
    again = run(*arguments)
    assert (again.code, again.out) == (6, "")
    assert again.err.count("exists and is not overwritten") == 2
    (tmp_path / "photos/b.txt").unlink()
    assert run(*arguments, "--skip-existing").out == "photos/b.txt\n"
    fake.answer = "a hen"
    assert run(*arguments, "--force").code == 0
    assert (tmp_path / "photos/a.txt").read_text() == "a hen\n"
    assert run("caption", "photos", "--recursive", "-o", "{sten}.txt").code == 2


def test_a_file_that_another_process_wrote_meanwhile_is_left_out(
    run: Run, fake: FakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / name)
    answer = fake.captions

    def captions(*given: object, **options: object) -> object:
        (tmp_path / "a.txt").write_text("of the other\n")
        return answer(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fake, "captions", captions)
    result = run("caption", "a.png", "b.png", "-o", "{stem}.txt", "--skip-existing")
    assert (result.code, result.out, result.err) == (0, "b.txt\n", "1 were done before\n")
    assert (tmp_path / "a.txt").read_text() == "of the other\n"
    (tmp_path / "a.txt").unlink()
    kept = run("caption", "a.png", "-o", "{stem}.txt")
    assert (kept.code, kept.out) == (3, "")
    assert "a.txt: exists and is not overwritten" in kept.err


def test_two_pictures_never_share_a_file(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    for name in ("x/a.png", "y/a.png"):
        save(tmp_path / name)
    result = run("caption", "x/a.png", "y/a.png", "-o", "{stem}.txt")
    assert (result.code, result.out) == (6, "a.txt\n")
    assert "named by two pictures" in result.err


def test_append_leaves_out_what_the_file_holds(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / name)
    assert run("caption", "a.png", "missing.png", "b.png", "--append", "log.jsonl").code == 6
    first = (tmp_path / "log.jsonl").read_text()
    assert [json.loads(line)["image"] for line in first.splitlines()] == ["a.png", "b.png"]
    result = run("caption", "a.png", "b.png", "c.png", "--append", "log.jsonl")
    assert (result.code, result.out, result.err) == (0, "", "2 were done before\n")
    assert (tmp_path / "log.jsonl").read_text().startswith(first)
    assert len(fake.asked) == 3
    # another question is another result; another model's file is another file
    run("caption", "a.png", "how many?", "--append", "log.jsonl")
    assert len(fake.asked) == 4
    object.__setattr__(fake.config, "name", "other")
    refused = run("caption", "c.png", "--append", "log.jsonl")
    assert refused.code == 3
    assert "holds answers of fake" in refused.err


def test_what_comes_by_stdin_is_another_picture_each_time(
    run: Run, fake: FakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for color in ("red", "blue"):
        data = io.BytesIO()
        Image.new("RGB", (8, 8), color).save(data, "PNG")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.getvalue())))
        assert run("caption", "-", "--append", "log.jsonl").code == 0
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len({line["sha256"] for line in lines}) == 2


def test_a_file_that_was_written_before_its_line_is_gone_on_with(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / name)
    arguments = ["caption", "a.png", "b.png", "-o", "{stem}.txt", "--append", "log.jsonl"]
    assert run(*arguments).code == 0
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    (tmp_path / "log.jsonl").write_text(lines[0] + "\n")
    assert run(*arguments).code == 0
    assert (tmp_path / "log.jsonl").read_text().splitlines() == lines
    # what somebody else wrote there is kept
    (tmp_path / "log.jsonl").write_text(lines[0] + "\n")
    (tmp_path / "b.txt").write_text("mine\n")
    result = run(*arguments)
    assert result.code == 6
    assert "b.txt: exists and is not overwritten" in result.err
    assert (tmp_path / "b.txt").read_text() == "mine\n"


def test_the_hash_is_of_the_file(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    (record,) = records(run("caption", "a.png", "--json"))
    assert record["sha256"] == sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.png", "--append", "x", "--json"],
        ["a.png", "--force", "--skip-existing"],
        ["a.png", "--skip-existing"],
        ["-", "--from", "-"],
    ],
)
def test_options_that_contradict_are_wrong_use(
    run: Run, fake: FakeSession, tmp_path: Path, arguments: list[str]
) -> None:
    save(tmp_path / "a.png")
    assert run("caption", *arguments).code == 2
    assert fake.opened == []
    assert not (tmp_path / "x").exists()


def test_a_dry_run_reads_names_alone(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not even a picture")
    result = run("caption", "a.png", "missing.png", "-o", "{stem}.txt", "--dry-run")
    assert (result.code, result.out) == (6, "a.png\ta.txt\n")
    assert "missing.png: no such file" in result.err
    (tmp_path / "list").write_text('a fox\n{"prompt": "a cat", "seed": 9, "output": "cat.webp"}\n')
    drawn = run("generate", "--from", "list", "--seed", "1", "-o", "{stem}.png", "--dry-run")
    assert (drawn.code, drawn.out) == (0, "a-fox-1.png\t1\ta fox\ncat.webp\t9\ta cat\n")
    assert fake.opened == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "list"]


def test_prompts_are_drawn_around_what_cannot_be(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    (tmp_path / "taken.png").write_bytes(b"old")
    lines = [
        "a fox",
        '{"prompt": "a cat", "seed": 90, "output": "taken.png"}',
        '{"prompt": 3}',
        '{"prompt": "a cat", "seed": 91, "output": "cat.png"}',
        '{"prompt": "a dog", "output": "dog.gif"}',
        '{"prompt": "a hen", "output": "nowhere/hen.png"}',
        "a bee",
    ]
    (tmp_path / "list").write_text("\n".join(lines))
    result = run("generate", "--from", "list", "--seed", "1", "-o", "{n}-{stem}.png")
    assert (result.code, result.out.split()) == (6, ["1-a-fox.png", "cat.png", "7-a-bee.png"])
    assert [seeds for _, seeds, *_ in fake.drawn] == [[1, 91, 7]]
    assert result.err.splitlines()[-1] == "4 of 7 pictures failed"
    assert (tmp_path / "taken.png").read_bytes() == b"old"
    stopped = run("generate", "--from", "list", "-o", "again-{n}.png", "--fail-fast", "-q")
    assert (stopped.code, stopped.out.split()) == (6, ["again-1.png"])


def test_drawings_are_recorded_and_gone_on_with(run: Run, fake: FakeSession, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a fox\na cat\na dog\n")
    arguments = ["generate", "--from", "list", "-o", "{stem}.png", "--append", "log.jsonl"]
    assert run(*arguments).code == 0
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    # as if it had been killed between the last picture and its line
    (tmp_path / "log.jsonl").write_text("\n".join(lines[:2]) + "\n")
    pictures = {p.name: p.read_bytes() for p in tmp_path.glob("*.png")}
    result = run(*arguments)
    assert (result.code, result.out) == (0, "")
    assert (tmp_path / "log.jsonl").read_text().splitlines() == lines
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.png")} == pictures
    # a picture of something else under that name is kept
    (tmp_path / "log.jsonl").write_text(lines[0] + "\n")
    save(tmp_path / "a-cat-2.png")
    assert run(*arguments).code == 6


# broken inputs

Breaker = Callable[[Path], None]


def truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:600])


def scrambled(path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(path, "PNG")
    data = bytearray(path.read_bytes())
    data[60:200] = bytes(140)
    path.write_bytes(data)


def cut_jpeg(path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:300])


BREAKERS: list[tuple[Breaker, str]] = [
    (lambda path: None, "no such file"),
    (lambda path: path.write_bytes(b""), "is empty"),
    (lambda path: path.write_text("a red fox"), "not a picture"),
    (lambda path: path.mkdir(), "is a folder"),
    (lambda path: path.symlink_to("gone"), "is a link to a file that is gone"),
    (lambda path: path.symlink_to(path.name), "symbolic links"),
    (truncated, "cannot be read"),
    (scrambled, "cannot be read"),
    (cut_jpeg, "cannot be read"),
    (lambda path: Image.new("1", (20_000, 20_000)).save(path, "PNG"), "pixels"),
]


def test_of_200_inputs_40_are_broken_in_ten_ways(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIMAMBA_MODEL", str(tiny_model))
    broken: dict[str, str] = {}
    for i in range(200):
        path = tmp_path / f"{i:03}.png"
        if i % 5 == 2:
            make, words = BREAKERS[i // 5 % 10]
            make(path)
            broken[path.name] = words
        else:
            save(path, (i, 255 - i, i // 2))
    result = run("caption", *[f"{i:03}.png" for i in range(200)], "-p", "what?", "--max-new-tokens", "2")
    assert result.code == 6
    good = [f"{i:03}.png" for i in range(200) if i % 5 != 2]
    assert [line.split("\t")[0] for line in result.out.splitlines()] == good
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(broken) == 40
    for line, (name, words) in zip(errors, broken.items(), strict=True):
        assert line.startswith(f"error: {name}: ")
        assert words in line
    assert result.err.splitlines()[-1] == "40 of 200 pictures failed"
    # and those that are right are right: each as alone
    said = dict(line.split("\t", 1) for line in result.out.splitlines())
    for name in good[::40]:
        assert (
            run("caption", name, "-p", "what?", "--max-new-tokens", "2", "--no-stream", "-H").out
            == f"{name}\t{said[name]}\n"
        )


@pytest.mark.parametrize("options", [[], ["--temperature", "1", "--seed", "3"]])
def test_a_batch_of_mixed_questions_says_what_each_is_told_alone(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setenv("OMNIMAMBA_MODEL", str(tiny_model))
    questions = ["what?", "how many foxes are here?", "what colour is the ground behind it?"]
    lines = []
    for i in range(12):
        save(tmp_path / f"{i}.png", (i * 20, 255 - i * 20, 99))
        lines.append(json.dumps({"image": f"{i}.png", "question": questions[i % 3]}))
    (tmp_path / "list").write_text("\n".join(lines))
    told = {}
    for size in ("1", "5", "32"):
        result = run("caption", "--from", "list", "--json", "--batch-size", size, *options)
        assert result.code == 0
        told[size] = [(r["image"], r["text"], r["seed"]) for r in records(result)]
    assert told["1"] == told["5"] == told["32"]
    assert len({text for _, text, _ in told["1"]}) > 1


# web addresses


class Pictures(BaseHTTPRequestHandler):
    """One picture, and what else an address can lead to."""

    def do_GET(self) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
        data = buffer.getvalue()
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/fox.png")
            self.end_headers()
            return
        if self.path == "/file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/short":
            self.send_header("Content-Length", str(len(data) + 50))
        self.end_headers()
        if self.path == "/endless":
            with_time = time.monotonic() + 20
            while time.monotonic() < with_time:
                try:
                    self.wfile.write(bytes(65536))
                except OSError:
                    return
        if self.path == "/slow":
            for byte in data:
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:
                    return
                time.sleep(0.05)
        self.wfile.write(b"<html>" if self.path == "/page" else data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on loopback, with limits that are soon reached."""
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(web_pictures.fetch, "__kwdefaults__", {"most_bytes": 1_000_000, "timeout_s": 1.0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_web_addresses_are_fetched_where_that_is_allowed(run: Run, fake: FakeSession, web: str) -> None:
    result = run("caption", f"{web}/fox.png", f"{web}/moved", "what?", "--allow-urls")
    assert (result.code, result.out) == (0, f"{web}/fox.png\ta red fox\n{web}/moved\ta red fox\n")


def test_web_addresses_are_refused_otherwise(run: Run, fake: FakeSession, web: str) -> None:
    result = run("caption", f"{web}/fox.png", "what?")
    assert (result.code, result.out) == (3, "")
    assert "a web address is not fetched\nhint: --allow-urls" in result.err
    offline = run("caption", f"{web}/fox.png", "--allow-urls", "--offline")
    assert (offline.code, offline.out) == (3, "")
    assert "offline" in offline.err


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/gone", "the server answered 404"),
        ("/file", "is not allowed"),
        ("/short", "the connection ended 50 bytes early"),
        ("/endless", "is larger than the 1 MB"),
        ("/slow", "did not come within 1 s"),
        ("/page", "not a picture"),
    ],
)
def test_what_an_address_can_lead_to_is_one_error(run: Run, fake: FakeSession, web: str, path: str, words: str) -> None:
    result = run("caption", web + path, "--allow-urls")
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith(f"error: {web}{path}: ")
    assert words in result.err


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.png", "http://", "http://[", "https://a b/"])
def test_an_address_that_leads_nowhere_is_one_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(InputError, match="cannot be fetched"):
        web_pictures.fetch(url, timeout_s=5)
