//! Makes picks to be counted: `benches/instructions` runs this under callgrind. See
//! docs/benchmarks.md.
//!
//! ```text
//! pick_instructions CASE INSTANCES PICKS
//! ```
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a benchmark is a program of its own"
)]

mod cases;

use cases::{Case, Pool, SIZES};

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    match arguments.as_slice() {
        [name, count, picks] => {
            let case = Case::ALL
                .into_iter()
                .find(|case| case.name == name)
                .expect("a known case");
            let pool = case.pool(count.parse().expect("a number of instances"));
            // The first picks of a thread set things up.
            pool.make_picks(0, 100);
            counted(&pool, picks.parse().expect("a number of picks"));
        }
        // Without arguments: what there is to count.
        _ => Case::ALL
            .into_iter()
            .filter(|case| !case.name.ends_with(", clock"))
            .flat_map(|case| SIZES.map(|count| (case, count)))
            .for_each(|(case, count)| println!("{}\t{count}", case.name)),
    }
}

/// Callgrind counts inside of this function alone, found by its name.
#[inline(never)]
fn counted(pool: &Pool, picks: usize) {
    pool.make_picks(0, picks);
}
