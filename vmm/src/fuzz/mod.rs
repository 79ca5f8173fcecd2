//! Everything a guest controls, fed with nonsense.
//!
//! [`targets`] are plain `fn(&[u8])`, for whatever finds bytes to give them. Here it is a seeded generator, so that it
//! runs on stable and a failure can be had again: it prints the seed, and `LQX_FUZZ_SEED=<seed>` begins with that one.
//! `LQX_FUZZ_SECONDS` says how long each target is run; without it, a fixed number of rounds is.

use std::time::{Duration, Instant};

mod firmware;
mod targets;

/// Rounds per target where no time is given.
const ROUNDS: u64 = 1500;

/// What the generator makes of a seed: mostly small numbers, some bytes of all bits, of any length up to 1 KiB.
fn bytes_of(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    };
    let len = next() % 1024;
    let plain = next() % 4;
    let byte = |value: u64, kind: u64| match kind % 8 {
        0..=2 => (value % 4) as u8,
        3 => 0,
        4 => 0xff,
        _ => value as u8,
    };
    (0..len)
        .map(|_| {
            if plain == 0 {
                next() as u8
            } else {
                byte(next(), next())
            }
        })
        .collect()
}

/// Says which seed it was when a target panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to have this failure again: LQX_FUZZ_SEED={}", self.0);
        }
    }
}

fn run(target: fn(&[u8])) {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse::<u64>().ok())
    };
    let first = number("LQX_FUZZ_SEED").unwrap_or(0);
    let deadline =
        number("LQX_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut rounds = 0;
    while deadline.map_or(rounds < ROUNDS, |deadline| Instant::now() < deadline) {
        let seed = Seed(first + rounds);
        target(&bytes_of(seed.0));
        rounds += 1;
    }
    println!("{rounds} rounds from seed {first}");
}

#[test]
fn fuzz_pci_config_writes() {
    run(targets::pci_config_writes);
}

#[test]
fn fuzz_virtio_common_config() {
    run(targets::virtio_common_config);
}

#[test]
fn fuzz_block_queue() {
    run(targets::block_queue);
}

#[test]
fn fuzz_net_queue() {
    run(targets::net_queue);
}

#[test]
fn fuzz_qcow2_image() {
    run(targets::qcow2_image);
}

#[test]
fn fuzz_flash_chip() {
    run(firmware::flash_chip);
}

#[test]
fn fuzz_firmware_configuration() {
    run(firmware::configuration);
}

/// A target that never gets past the first check finds nothing.
#[test]
fn the_firmware_targets_get_somewhere() {
    let rounds = || (0..300).map(bytes_of);
    let chips: Vec<_> = rounds()
        .map(|data| firmware::flash_outcome(&data))
        .collect();
    for (at, what) in ["programmed", "erased", "failed"].iter().enumerate() {
        let got = chips.iter().filter(|counts| counts[at] > 0).count();
        assert!(got > 30, "{what} in {got} of 300");
    }
    let requests: Vec<_> = rounds()
        .map(|data| firmware::configuration_outcome(&data))
        .collect();
    for (at, what) in ["served", "refused"].iter().enumerate() {
        let got = requests.iter().filter(|counts| counts[at] > 0).count();
        assert!(got > 30, "{what} in {got} of 300");
    }
}

#[test]
fn hostile_images_are_refused_read_and_written() {
    let outcome = |seed| crate::disk::qcow2::crash::hostile_image(&bytes_of(seed));
    let outcomes: Vec<_> = (0..300).map(outcome).collect();
    let opened = outcomes.iter().filter(|(opened, ..)| *opened).count();
    assert!((30..290).contains(&opened), "{opened} of 300 were opened");
    assert!(outcomes.iter().filter(|(_, read, _)| *read > 0).count() > 30);
    assert!(
        outcomes
            .iter()
            .filter(|(_, _, written)| *written > 0)
            .count()
            > 30
    );
}

/// A target that never gets past the first check finds nothing.
#[test]
fn the_targets_reach_both_success_and_failure() {
    for outcome in [targets::block_queue_outcome, targets::net_queue_outcome] {
        let outcomes: Vec<_> = (0..300).map(|seed| outcome(&bytes_of(seed))).collect();
        let broken = outcomes.iter().filter(|(broken, ..)| *broken).count();
        assert!(
            (30..270).contains(&broken),
            "{broken} of 300 broke the queue"
        );
        assert!(outcomes.iter().filter(|(_, input, _)| *input > 0).count() > 30);
        assert!(outcomes.iter().filter(|(_, _, output)| *output > 0).count() > 30);
    }
}

#[test]
fn the_generator_repeats_itself_only_for_the_same_seed() {
    assert_eq!(bytes_of(7), bytes_of(7));
    assert_ne!(bytes_of(7), bytes_of(8));
}
