//! The hot paths, one by one, for counting instructions: `scripts/instructions` runs this under callgrind.
//!
//! What it runs is the same each time: fixed inputs, fixed orders, no clock, no thread, no system call on
//! a measured path. Only what happens inside [`count::measured`] counts; what a path needs from the rest
//! of the world (bytes that arrive, other nodes, a device) is made outside of it, or inside
//! [`count::paused`]. Nothing here judges: the budgets are in `scripts/lib/instructions.json`.
//!
//! By itself it only shows that every path still works: each case checks what comes out.
//!
//! | module | paths |
//! |---|---|
//! | [`wire`] | frames and messages, checksums |
//! | [`front`] | NBD requests and replies, the block layer |
//! | [`machines`] | a leader and three nodes |
//! | [`store`] | a storage node's store on a device in memory |
//! | [`place`] | CRUSH |

mod count;
mod front;
mod machines;
mod place;
mod store;
mod wire;

// The daemons' allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A block's worth of bytes that are neither equal nor random.
pub fn block(seed: u8) -> Vec<u8> {
    (0..4096u32).map(|n| (n.wrapping_mul(31) >> 3) as u8 ^ seed).collect()
}

/// What the processor (or callgrind, which knows fewer) can do of what code here chooses by.
fn machine() {
    #[cfg(target_arch = "x86_64")]
    println!(
        "machine: processor: sse4.2 {}, pclmulqdq {}, vpclmulqdq {}, avx512vl {}",
        is_x86_feature_detected!("sse4.2"),
        is_x86_feature_detected!("pclmulqdq"),
        is_x86_feature_detected!("vpclmulqdq"),
        is_x86_feature_detected!("avx512vl"),
    );
}

fn main() {
    machine();
    wire::cases();
    front::cases();
    machines::cases();
    store::cases();
    place::cases();
}
