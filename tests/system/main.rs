//! What must be seen to work, on real processes and with real clients.
//!
//! Every test starts `trefoil up --processes` in a directory of its own, does to it what happens to
//! machines, and looks at what clients see. Run all of them with `cargo test --test system`, or one with
//! its name after that; `-- --nocapture` shows what was measured.
//!
//! | module | what |
//! |---|---|
//! | [`clients`] | nbdinfo, nbdcopy, qemu-img, file systems |
//! | [`kills`] | storage nodes and the monitor killed or stopped under load |
//! | [`moving`] | placement groups move under load: nodes added, out, lost; kills in the middle; undone, paused |
//! | [`split`] | placement groups split under load, kills in the middle, a node away meanwhile |
//! | [`monitors`] | three monitors: the leader killed, a minority stopped, all restarted, replaced, restored |
//! | [`partition`] | five monitors: two killed, a minority cut off from the others, all restarted |
//! | [`cut_off`] | a front end that reaches its nodes and not the monitor |
//! | [`slow`] | storage nodes killed, stopped and slowed, and the longest read and write meanwhile |
//! | [`power`] | everything killed at once in mid-write |
//! | [`in_sync`] | writes that wait for all copies: a node stopped, each device alone |
//! | [`takeover`] | two front ends for one volume |
//! | [`shards`] | a front end of several threads |
//! | [`lost`] | a node that comes back as it was some time ago, and who finds it |
//! | [`rot`] | bytes of a device flipped |
//! | [`scrub`] | rot that nobody reads, and copies that lie |
//! | [`catch_up`] | a node that was away while data changed |
//! | [`recovery`] | clients while a node is brought back; all nodes killed and started at once |
//! | [`full`] | no space left |
//! | [`offline`] | nothing runs: volumes taken out of bare devices |
//! | [`syscalls`] | system calls per I/O |
//! | [`deploy`] | units and installation, on a host with systemd |
//! | [`bad_input`] | what users, disks and strangers get wrong |
//! | [`stand_in`] | the tools below against a server that is known to be right |
//!
//! The tools: [`cluster`] and [`health`] (the only ones that know how Trefoil is started and asked),
//! [`nbd_client`], [`blocks`] (contents and the ledger of what was acknowledged), [`writer`],
//! [`prober`], [`tools`].
//!
//! Environment: `TREFOIL_BIN` another binary than the one just built, `TREFOIL_TEST_KEEP=1` keeps the
//! directories, `TREFOIL_TEST_REQUIRE=1` makes a missing program a failure instead of a skip.

mod bad_input;
mod blocks;
mod catch_up;
mod clients;
mod cluster;
mod cut_off;
mod deploy;
mod full;
mod health;
mod in_sync;
mod kills;
mod lost;
mod monitors;
mod moving;
mod nbd_client;
mod offline;
mod partition;
mod power;
mod prober;
mod reclaim;
mod recovery;
mod rollback;
mod rot;
mod scrub;
mod shards;
mod slow;
mod split;
mod stand_in;
mod syscalls;
mod takeover;
mod tools;
mod writer;
