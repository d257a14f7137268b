"""What can be asked for: no line crashes the parser, and what is printed is read back."""

import contextlib
import io
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_model
from PIL import Image

from promptswitch_nb.queries import Expression
from promptswitch_nb.queries import Query
from promptswitch_nb.queries import QueryError
from promptswitch_nb.queries import Term
from promptswitch_nb.queries import embed
from promptswitch_nb.queries import kind_of
from promptswitch_nb.queries import load_picture
from promptswitch_nb.queries import parse_query
from promptswitch_nb.queries import read_span
from promptswitch_nb.video import load_frames
from promptswitch_nb.video import write_video

REAL = os.environ.get("PROMPTSWITCH_TEST_DATA")
SENTENCES = """
a dog jumps into a pool
well-known - or is it?
a + b
red + blue - green
2:30 in the morning, 4:3
it's the man's "dog"
"Stop!" he says
"Yes" and "no"
she says "no" - and leaves
a "red"-green ball
un "chat"+chien
a 24" screen
5' 10" tall
AND THEN a car comes
C:\\ is a drive
~ 5 birds
/imagine a dog
100% #1 #t=12,18
dog\\cat
\\"quoted\\"
狗 + 猫
""".strip().split("\n")
REFUSED = {
    '"dog" + cat': "outside of quotation marks",
    'dog + "cat"': "outside of quotation marks",
    '"dog" +cat': "outside of quotation marks",
    'dog - 2:"cat"': "outside of quotation marks",
    '"a dog" THEN a cat': "outside of quotation marks",
    'a dog THEN "a cat"': "outside of quotation marks",
    'THEN "a cat"': "outside of quotation marks",
    '"a" THEN THEN "b"': "outside of quotation marks",
    '"a" + - "b"': "outside of quotation marks",
    '"a" + x:"b"': "outside of quotation marks",
    '"a" "b"': "between these two",
    '"a"\n"b"': "between these two",
    '"a" +': "must follow",
    '"a" THEN': "must follow",
    '"a" + "b': "never closed",
    '"a': "never closed",
    "": "empty",
    " \n": "empty",
    '""': "between the quotation marks",
    '"a" - " "': "between the quotation marks",
    '0:"a"': "above 0",
    '1.2.3:"a"': "above 0",
    '.:"a"': "above 0",
    "9" * 400 + ':"a"': "above 0",
    "0." + "0" * 400 + '1:"a"': "above 0",
    '"./missing.mp4"': "no file",
    "./missing.mp4": "no file",
    '"a" + "~/missing.mp4"': "no file",
    '"./missing\x00.mp4"': "no file",
    '"/' + "x" * 5000 + '"': "no file",
    '"./"': "a folder",
    '"C:\\missing.mp4"': "no file",
}


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """Make a folder of files to ask with, and go there."""
    monkeypatch.chdir(tmp_path)
    film = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3)).astype(np.uint8)
    write_video("clip.mp4", film, fps=10)
    Image.fromarray(film[0]).save("picture.png")
    Path("notes.txt").write_text("buy milk")
    return tmp_path


def only(query: Query) -> Term:
    """Return the one term of a query."""
    [step] = query.steps
    [term] = step.terms
    return term


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_is_taken_as_it_stands(sentence, files):
    assert only(parse_query(f" {sentence}\n")) == Term(1.0, "text", sentence)
    assert only(parse_query(sentence, files=False)) == Term(1.0, "text", sentence)


@pytest.mark.parametrize("line", REFUSED)
def test_a_mistake_is_refused_with_its_place(line, files):
    with pytest.raises(QueryError, match=REFUSED[line]) as caught:
        parse_query(line)
    assert str(caught.value).split("\n")[-1].strip() == "^"
    assert 0 <= caught.value.at <= len(line)


@pytest.mark.parametrize("line, at", [('"a" + bc', 6), ('bc + "a"', 0), ('"a" - "./x" + "b"', 6)])
def test_the_caret_stands_below_the_mistake(line, at, files):
    with pytest.raises(QueryError) as caught:
        parse_query(line)
    shown, caret = str(caught.value).split("\n")[-2:]
    assert (shown, caret.index("^")) == (f"    {line}", at + 4)


def test_blanks_do_not_matter_and_signs_belong_to_terms():
    expected = [Term(-2.0, "text", "a"), Term(0.5, "text", "b"), Term(-1.0, "text", "c")]
    for line in ('-2:"a"+.5:"b"-"c"', ' - 2 : "a"  + 0.5:  "b"\n-\t"c" '):
        assert parse_query(line) == Query([Expression(expected)])
    steps = parse_query('"a"THEN-"b" THEN 3:"c"').steps
    assert [step.terms[0].weight for step in steps] == [1, -1, 3]


def test_a_backslash_keeps_quotation_marks_and_paths(files):
    assert only(parse_query(r'"say \"no\" + \"yes\""')).value == 'say "no" + "yes"'
    assert only(parse_query(r'"\./clip.mp4"')) == Term(1.0, "text", "./clip.mp4")
    assert only(parse_query(r'"\\server"')).value == r"\server"
    assert only(parse_query(r'"a\b"')).value == r"a\b"


def test_files_are_found_by_quoted_path_by_bare_path_and_by_path(files):
    clip = Term(1.0, "video", Path("clip.mp4"))
    part = clip._replace(span=(0.5, 1.5))
    for query in ('"./clip.mp4"', "./clip.mp4", Path("clip.mp4")):
        assert only(parse_query(query)) == clip
    for query in ('"./clip.mp4#t=.5,1.5"', '"./clip.mp4#t=x"', '"./clip.mp4#t="'):
        with pytest.raises(QueryError, match="written #t="):
            parse_query(query)
    for query in ('"./clip.mp4#t=0.5,1.5"', "./clip.mp4#t=0.5,1.5", Path("clip.mp4#t=0.5,1.5")):
        assert only(parse_query(query)) == part
    assert only(parse_query(f'"{files}/picture.png"')).kind == "image"
    assert only(parse_query("clip.mp4")).kind == "text"
    for term in (part, clip._replace(span=(0.5, math.inf), weight=-2.0)):
        query = Query([Expression([term])])
        assert parse_query(str(query)) == query


def test_a_home_folder_is_meant_by_a_tilde(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    found = only(parse_query('"~/picture.png"'))
    assert found == Term(1.0, "image", files / "picture.png")
    assert parse_query(str(found)) == Query([Expression([found])])
    Path("~").mkdir()
    Path("~/x.png").write_bytes(Path("picture.png").read_bytes())
    odd = only(parse_query(Path("~/x.png")))
    assert only(parse_query(str(odd))) == odd == Term(1.0, "image", Path("~/x.png"))


def test_a_file_with_a_span_in_its_name_wins(files):
    Path("clip.mp4#t=1,2").write_bytes(Path("picture.png").read_bytes())
    for query in ('"./clip.mp4#t=1,2"', Path("clip.mp4#t=1,2"), "./clip.mp4#t=1,2"):
        assert only(parse_query(query)) == Term(1.0, "image", Path("clip.mp4#t=1,2"))
    assert only(parse_query('"./clip.mp4#t=1,1.9"')).span == (1.0, 1.9)
    Path("a#t=b.mp4").write_bytes(Path("clip.mp4").read_bytes())
    assert only(parse_query(Path("a#t=b.mp4#t=1"))).span == (1.0, math.inf)


NAMES = [b"a 'b' \"c\".mp4", b"a#b%20.mp4", b"a\nb.mp4", b"\xff\xfe.mp4", b"- x + y.mp4"]
NAMES += [b"a\\b.mp4", b'".mp4']


@pytest.mark.skipif(os.name == "nt", reason="such names cannot be there")
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_any_file_name_is_read_and_printed(name, files):
    path = Path(os.fsdecode(name))
    path.write_bytes(Path("clip.mp4").read_bytes())
    term = only(parse_query(path))
    assert term == Term(1.0, "video", path)
    assert only(parse_query(str(term))) == term
    assert str(QueryError(f"{path} is bad", str(path), 0)).encode()


@pytest.mark.parametrize("fragment", ["1,1", "1.5,1", "2.0", "5,6"])
def test_a_part_that_is_not_there_is_refused(fragment, files):
    with pytest.raises(QueryError, match="ends at"):
        parse_query(f'"./clip.mp4#t={fragment}"')


def test_a_picture_has_no_seconds(files):
    with pytest.raises(QueryError, match="A picture has no seconds"):
        parse_query('"./picture.png#t=1"')


def test_what_is_neither_picture_nor_video_is_refused(files):
    Path("cut.jpg").write_bytes(jpeg("picture.png")[:300])
    Path("empty.mp4").touch()
    cases = {
        "notes.txt": "no picture that Pillow knows",
        "cut.jpg": "cannot be read as a picture: ",
        "empty.mp4": "empty",
    }
    for name, why in cases.items():
        with pytest.raises(QueryError, match=why):
            parse_query(f'"./{name}"')


def jpeg(path: str) -> bytes:
    """Return a picture as a JPEG."""
    Image.open(path).resize((64, 64)).save("as.jpg")
    return Path("as.jpg").read_bytes()


def written_kinds() -> list[tuple[str, str]]:
    """List the kinds of files that Pillow writes, and the modes of pixels in them."""
    found = []
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga"):
        for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK"):
            with contextlib.suppress(OSError, ValueError):
                Image.new("RGB", (4, 4)).convert(mode).save(io.BytesIO(), format=kind)
                found.append((kind, mode))
    return found


@pytest.mark.parametrize("kind, mode", written_kinds())
def test_pictures_of_many_kinds_are_pictures(kind, mode, files):
    picture = Image.open("picture.png").resize((32, 20)).convert("RGB")
    picture.convert(mode).save("picture.dat", format=kind)
    assert kind_of("picture.dat") == "image"
    read = load_picture("picture.dat")
    assert (read.shape, read.dtype) == ((20, 32, 3), np.uint8)
    if mode in ("RGB", "RGBA") and kind in ("png", "bmp", "ppm", "tga"):
        assert np.array_equal(read, np.asarray(picture))


def test_what_moves_is_a_video(files):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save("moving.webp", save_all=True, append_images=frames[1:])
    frames[0].save("phone.jpg", format="MPO", save_all=True, append_images=frames[1:2])
    assert kind_of("moving.gif") == "video"
    assert kind_of("moving.webp") in ("video", "image")  # as FFmpeg can read it or not
    assert kind_of("phone.jpg") == "image"


def test_deep_pictures_are_refused_and_not_made_white(files):
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save("deep.png")
    with pytest.raises(QueryError, match="more than 8 bits"):
        parse_query('"./deep.png"')


def test_a_server_opens_no_file_and_does_not_tell_of_any(files):
    answers = set()
    for name in ("clip.mp4", "missing.mp4"):
        with pytest.raises(QueryError, match="not open to queries") as caught:
            parse_query(f'"./{name}"', files=False)
        answers.add(caught.value.reason)
        assert only(parse_query(f"./{name}", files=False)).kind == "text"
    assert len(answers) == 1


def test_something_else_than_a_query_is_refused():
    for odd in (None, 5, b"dog", ["dog"]):
        with pytest.raises(QueryError, match="a text or a Path"):
            parse_query(odd)


PIECES = ['"', "\\", "+", "-", "THEN", " ", ":", "2:", "0.5", "dog", "./", "~", "/", "#t=", "\x00"]
TERMS = [
    '"a"',
    '"b c"',
    '"./clip.mp4"',
    '"./clip.mp4#t=1,2"',
    '"\\"é"',
    '"\\./x"',
    "dog",
    '"\udcff"',
]
JOINTS = [" + ", "-", " THEN ", " - 2:", "+0.5 : ", " THEN - 1e9:", " ", " and ", "\n", ""]


def scrawl(draw: random.Random) -> str:
    """Write something that is a query, or nearly one, or nothing of the kind."""
    line = draw.choice(["", "", " - ", "2:", "THEN "])
    for _ in range(draw.randint(1, 3)):
        line += draw.choice(TERMS) + draw.choice(JOINTS)
    line += draw.choice([*TERMS, ""])
    for _ in range(draw.choice([0, 0, 1, 2, 8])):
        place = draw.randint(0, len(line))
        line = line[:place] + draw.choice(PIECES) + line[place:]
    return line


@pytest.mark.parametrize("seed", range(4))
def test_no_line_crashes_the_parser_and_what_is_printed_is_read_back(seed, files):
    draw, understood, expressions = random.Random(seed), 0, 0
    for _ in range(1500):
        line = scrawl(draw)
        try:
            query = parse_query(line)
        except QueryError as error:
            assert "^" in str(error).split("\n")[-1]
            continue
        understood += 1
        expressions += len(query.steps[0].terms) + len(query.steps) > 2
        assert parse_query(str(query)) == query, line
        assert all(term.weight for step in query.steps for term in step.terms)
    assert understood > 500
    assert expressions > 80


@pytest.mark.parametrize("seed", range(4))
def test_any_query_is_read_back_from_print(seed):
    draw = random.Random(seed)
    letters = 'ab "\\+-:./~THEN\n2é#='
    for _ in range(500):
        steps = []
        for _ in range(draw.randint(1, 3)):
            texts = ["".join(draw.choices(letters, k=draw.randint(1, 8))) for _ in range(3)]
            weights = [draw.choice([1.0, -1.0, 2.5, -1e-9, 3e20, 1 / 3]) for _ in texts]
            terms = [Term(w, "text", text) for w, text in zip(weights, texts) if text.strip()]
            steps.append(Expression(terms or [Term(1.0, "text", "x")]))
        assert parse_query(str(Query(steps))) == Query(steps)


def test_a_query_becomes_a_vector_of_unit_norm(files):
    model = small_model(k=1).train()  # in training it draws a frame of each video
    line = '2:"a red ring" + "./picture.png" - 0.5:"./clip.mp4" + "./clip.mp4#t=0.5,1"'
    vector = embed(parse_query(line).steps[0], model)
    assert model.training
    assert (vector.shape, vector.dtype) == ((16,), torch.float32)
    assert not (vector.is_inference() or vector.requires_grad)
    assert torch.equal(vector, embed(parse_query(line).steps[0], model))
    assert vector.norm().item() == pytest.approx(1, abs=1e-6)
    model.eval()
    see = model.preprocess
    with torch.no_grad():
        still = see.to_input(load_picture("picture.png")[None].repeat(see.test_frames, 0))
        part = read_span("clip.mp4", (0.5, 1), see).frames
        videos = [still, load_frames("clip.mp4", see), part]
        picture, clip, part = model.encode_video(torch.stack(videos))
        total = 2 * model.encode_text(["a red ring"])[0] + picture - 0.5 * clip + part
    assert torch.allclose(vector, total / total.norm(), atol=1e-5)


def test_terms_that_cancel_out_are_refused(files):
    model = small_model()
    for line in (
        '"a ring" - "a ring"',
        '"a ring" - 1.0001:"a ring"',
        '2:"./picture.png" - 2:"./picture.png"',
    ):
        with pytest.raises(QueryError, match="cancel out"):
            embed(parse_query(line).steps[0], model)


@pytest.mark.skipif(not REAL, reason="needs the real clips: PROMPTSWITCH_TEST_DATA")
def test_parts_of_real_clips_are_where_they_should_be():
    model = small_model()
    for name in ("asl_walk.mkv", "cups_shell_game.mp4", "rabbit_figurine.webm"):
        path = Path(REAL, "data", "clips", name)
        assert only(parse_query(path)).kind == "video"
        term = only(parse_query(Path(f"{path}#t=0.5,1.25")))
        found = read_span(path, term.span, model.preprocess)
        assert ((found.times >= 0.4) & (found.times < 1.25)).all(), path.name
        whole = read_span(path, (0, math.inf), model.preprocess)
        assert torch.equal(whole.frames, load_frames(path, model.preprocess)), path.name
