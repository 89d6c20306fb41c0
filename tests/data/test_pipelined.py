from __future__ import annotations

import threading

import pytest
from scripts.data.pipelined import pipelined


def test_each_item_goes_through_its_steps_in_order():
    stored = {}
    done = pipelined(range(7), lambda item: item + 1, lambda value: value * 10, stored.__setitem__)
    assert [item for item, _ in done] == list(range(7))
    assert stored == {item: (item + 1) * 10 for item in range(7)}
    assert list(pipelined([], abs, abs, stored.__setitem__)) == []


def test_the_first_and_last_step_go_on_beside_the_second():
    # each waits for another item's step: one after the other, the barrier would break
    next_begun, before_stored = threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=60)

    def before(item):
        if item == 2:
            next_begun.wait()
        return item

    def work(item):
        if item == 1:
            next_begun.wait()
            before_stored.wait()
        return item

    def behind(item, made):
        if item == 0:
            before_stored.wait()

    assert list(pipelined(range(4), before, work, behind)) == [(item, None) for item in range(4)]


@pytest.mark.parametrize("step", ["before", "work", "behind"])
def test_what_goes_wrong_with_one_item_stops_no_other(step):
    def wrong(name):
        def do(item, *made):
            if name == step and item == 2:
                raise ValueError("two")
            return item

        return do

    done = dict(pipelined(range(5), wrong("before"), wrong("work"), wrong("behind")))
    assert set(done) == set(range(5)) and str(done.pop(2)) == "two" and set(done.values()) == {None}


def test_items_are_asked_for_shortly_before_they_are_needed():
    asked = []

    def items():
        for item in range(10):
            asked.append(item)
            yield item

    done = pipelined(items(), abs, abs, lambda item, made: None)
    next(done)
    assert max(asked) < 7
