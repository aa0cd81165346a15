//! The short versions of the harnesses, part of every test run.

use obs_torture::model;

#[test]
fn simulated_lives_keep_every_invariant() {
    let mut total = model::Tally::default();
    // 7703: the power fails in a write of three frames, of which only the last is kept.
    for seed in (0..600).chain([7703]) {
        let t = model::run(seed).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        total.acked += t.acked;
        total.crashes += t.crashes;
        total.injected += t.injected;
        total.crashed_in.extend(t.crashed_in);
    }
    // The control: the harness did crash, at every kind of call, and did inject faults.
    assert!(total.acked > 8_000 && total.crashes > 350 && total.injected > 80, "{total:?}");
    let files = ["append", "sync", "create", "remove", "sync of the folder of a new file"];
    for kind in files.into_iter().chain(["put of an object", "removal of an object"]) {
        assert!(total.crashed_in.contains(kind), "never crashed in {kind}: {total:?}");
    }
}

#[test]
fn flipped_bits_and_pages_are_found_and_cost_little() {
    for seed in 0..200 {
        let page = seed % 6 == 0;
        let (noticed, _) = model::damage(seed, page).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(noticed);
    }
}
