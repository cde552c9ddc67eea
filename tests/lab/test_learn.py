"""``lab learn``: the whole course, as somebody who knows everything and mends what breaks."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from muslin.lab.course import COURSE
from muslin.lab.lesson_answers import FINDERS
from tests.lab.support import Muslin, finish, read_until
from tests.lab.test_break import mend

RIGHT = {
    "namespace": ("y", "10.0.0.10"),
    "gateway": ("10.0.0.10", "default"),
    "bridge": ("64", "64"),
    "table": ("172.16.0.0/24", "default"),
    "routes": ("62", "Static", "172.16.0.2"),
    "longest-prefix": ("br0", "tun0"),
    "overlay": ("62", "1472", "172.16.0.100"),
}


def learner(muslin: Muslin, tmp_path: Path) -> dict[str, str]:
    """An environment in which what was learned is kept for this test alone."""
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def test_the_whole_course_with_every_answer_right_and_every_fault_mended(muslin: Muslin, tmp_path: Path) -> None:
    env, name = learner(muslin, tmp_path), muslin.new_name()
    process = muslin.start("learn", "--name", name, env=env, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None

    def answer(text: str, after: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        read_until(process.stdout.fileno(), lambda so_far: after in so_far, f"it asks: {after}")
        process.stdin.write(f"{text}\n")
        process.stdin.flush()

    for lesson in COURSE:
        for word in RIGHT[lesson.name]:
            answer(word, "your prediction")
        if lesson.exercise:
            read_until(process.stdout.fileno(), lambda text: "done, hint, or solve?" in text, "the exercise begins")
            for finding in muslin.json("diagnose", "--name", name, code=1)["findings"]:
                for command in finding["mend"]:
                    mend(muslin, command)
            process.stdin.write("done\n")
            process.stdin.flush()
    done = finish(process)
    assert "19 of 19 points" in done.stdout
    assert name not in muslin.lab("ls", "-q").stdout
    listed = muslin.lab("learn", "--list", env=env).stdout
    assert listed.count(" of ") >= len(COURSE)


def test_it_stops_and_goes_on_and_wrong_answers_are_explained(muslin: Muslin, tmp_path: Path) -> None:
    env, name = learner(muslin, tmp_path), muslin.new_name()
    first = muslin.lab("learn", "--name", name, env=env, stdin="perhaps\nno\nyes\n10.0.0.10\nquit\n")
    assert "it takes yes or no; quit stops" in first.stdout
    assert "it takes an address, such as 10.0.0.10" in first.stdout
    assert "✗ no, it is: yes. The kernel of the namespace answers." in first.stdout
    assert "1 of 2 points" in first.stdout
    assert "Go on with: muslin lab learn" in first.stderr
    second = muslin.lab("learn", "--name", name, env=env, stdin="quit\n")
    assert "A gateway that is oneself" in second.stdout
    assert "A container is a namespace" not in second.stdout
    again = muslin.lab("learn", "--restart", "--name", name, env=env, stdin="")
    assert "A container is a namespace" in again.stdout
    assert "there is no lesson 'nope'" in muslin.lab("learn", "nope", env=env, code=2).stderr
    (tmp_path / "state" / "muslin" / "learn.json").write_text("nonsense")
    assert "begin anew with" in muslin.lab("learn", "--list", env=env, code=1).stderr
    muslin.lab("learn", "--restart", "--list", env=env)


def test_every_question_has_a_finder_and_every_finder_a_question() -> None:
    assert {question.find for lesson in COURSE for question in lesson.questions} == set(FINDERS)
    assert (
        shlex.join([lesson.name for lesson in COURSE]) == "namespace gateway bridge table routes longest-prefix overlay"
    )
