from kdscale.evaluation.depths import cut_run, depths_of

CANDIDATES = {"q1": ["a", "b", "c", "d"], "q2": ["e"], "q3": []}
RUN = {"q1": ["d", "b", "c", "a"], "q2": ["e"]}


def test_a_run_is_cut_by_the_first_stages_order_and_keeps_its_own():
    assert cut_run(RUN, CANDIDATES, 1) == {"q1": ["a"], "q2": ["e"]}
    assert cut_run(RUN, CANDIDATES, 3) == {"q1": ["b", "c", "a"], "q2": ["e"]}
    assert cut_run(RUN, CANDIDATES, 4) == cut_run(RUN, CANDIDATES, 99) == RUN


def test_the_depths_of_a_collection_end_with_its_own():
    assert depths_of([30, 10], 50) == [10, 30, 50]
    assert depths_of([50, 10, 10], 20) == [10, 20]
    assert depths_of([], 50) == [50]
