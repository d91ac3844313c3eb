//! An NBD server on memory: this crate's server, codec and block layer with nothing behind them.
//!
//! For trying clients and for measuring what the front end alone costs. Nothing is stored.
//!
//! `nbd-memory [--tcp ADDR:PORT] [--unix PATH] [--size BYTES] [--object-size BYTES] [--read-only]`
//!
//! Prints `ready: tcp ADDR:PORT` and `ready: unix PATH`; ends at the end of its standard input, after
//! printing its counters.

use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use std::rc::Rc;
use trefoil_core::checksum::HOLE;
use trefoil_core::client::{ClientOp, OpDone, OpKind, OpOutput};
use trefoil_core::ids::{BLOCK_SIZE, BlockRange, ObjectIndex, VolumeId};
use trefoil_nbd::blocks::BlockLayer;
use trefoil_nbd::disk::{ConnId, Disk, DiskRequest, ExportInfo, Exports, LocalFuture, OpenError};
use trefoil_nbd::server::{Config, Server};

/// A leader without nodes: every operation is done at once.
#[derive(Default)]
struct Memory {
    blocks: HashMap<(ObjectIndex, u32), (u64, Bytes)>,
}

impl Memory {
    fn apply(&mut self, op: ClientOp<Bytes>) -> OpDone<Bytes> {
        let range = |blocks: BlockRange| (blocks.first..blocks.end()).map(|b| (op.object, b));
        let output = match op.kind {
            OpKind::Write { blocks, ref checksums, ref data } => {
                let parts = (0..).step_by(BLOCK_SIZE).zip(checksums);
                for (place, (at, sum)) in range(blocks).zip(parts) {
                    // A copy: a slice would pin the connection's whole receive buffer for ever.
                    let block = Bytes::copy_from_slice(&data[at..at + BLOCK_SIZE]);
                    self.blocks.insert(place, (*sum, block));
                }
                OpOutput::Written
            }
            OpKind::Zero { blocks } => {
                range(blocks).for_each(|place| drop(self.blocks.remove(&place)));
                OpOutput::Written
            }
            OpKind::Read { blocks } => {
                let found: Vec<_> = range(blocks).map(|place| self.blocks.get(&place)).collect();
                let checksums = found.iter().map(|b| b.map_or(HOLE, |(sum, _)| *sum)).collect();
                let data = match found.as_slice() {
                    [Some((_, data))] => data.clone(),
                    many => {
                        let mut data = BytesMut::new();
                        many.iter().flatten().for_each(|(_, block)| data.extend_from_slice(block));
                        data.freeze()
                    }
                };
                OpOutput::Read { checksums, data }
            }
            OpKind::Status { blocks } => {
                let sum = |place| self.blocks.get(&place).map_or(HOLE, |(sum, _)| *sum);
                OpOutput::Read { checksums: range(blocks).map(sum).collect(), data: Bytes::new() }
            }
        };
        OpDone { id: op.id, result: Ok(output) }
    }
}

struct MemoryDisk {
    info: ExportInfo,
    inner: RefCell<(BlockLayer, Memory, Vec<ClientOp<Bytes>>)>,
}

impl Disk for MemoryDisk {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }
    fn submit(&self, batch: &mut Vec<DiskRequest>) {
        let (layer, memory, ops) = &mut *self.inner.borrow_mut();
        layer.submit(batch);
        loop {
            layer.take_ops(ops);
            if ops.is_empty() {
                return;
            }
            ops.drain(..).for_each(|op| layer.complete(memory.apply(op)));
        }
    }
    fn client_gone(&self, conn: ConnId) {
        self.inner.borrow_mut().0.client_gone(conn);
    }
}

struct OneExport(Rc<MemoryDisk>);

impl OneExport {
    fn find(&self, name: &str) -> Result<Rc<MemoryDisk>, OpenError> {
        if name.is_empty() || name == self.0.info.name {
            return Ok(self.0.clone());
        }
        Err(OpenError::Unknown(format!("there is no export {name:?}; there is {:?}", self.0.info.name)))
    }
}

impl Exports for OneExport {
    fn list(&self) -> Vec<String> {
        vec![self.0.info.name.clone()]
    }
    fn describe(&self, name: &str) -> LocalFuture<Result<ExportInfo, OpenError>> {
        let found = self.find(name).map(|disk| disk.info());
        Box::pin(async move { found })
    }
    fn open(&self, name: &str) -> LocalFuture<Result<Rc<dyn Disk>, OpenError>> {
        let found = self.find(name).map(|disk| disk as Rc<dyn Disk>);
        Box::pin(async move { found })
    }
}

fn main() -> anyhow::Result<()> {
    let (mut tcp, mut unix) = (None, None::<PathBuf>);
    let (mut size_bytes, mut object_size, mut read_only) = (1u64 << 30, 4u64 << 20, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| anyhow::anyhow!("{arg} needs a value"));
        match arg.as_str() {
            "--tcp" => tcp = Some(value()?.parse()?),
            "--unix" => unix = Some(value()?.into()),
            "--size" => size_bytes = value()?.parse()?,
            "--object-size" => object_size = value()?.parse()?,
            "--read-only" => read_only = true,
            _ => anyhow::bail!("unknown argument {arg}"),
        }
    }
    let layer = BlockLayer::new(VolumeId(1), size_bytes, object_size)?;
    let description = "memory that is lost at the end".into();
    let info = ExportInfo { name: "disk0".into(), description, size_bytes, read_only };
    let inner = RefCell::new((layer, Memory::default(), Vec::new()));
    let disk = Rc::new(MemoryDisk { info, inner });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let server = Server::new(Rc::new(OneExport(disk.clone())), Config::default());
        if let Some(address) = tcp {
            println!("ready: tcp {}", server.listen_tcp(address)?);
        }
        if let Some(path) = unix {
            server.listen_unix(&path)?;
            println!("ready: unix {}", path.display());
        }
        let (ended, end) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            ended.send(())
        });
        let _ = end.await;
        println!("{:?} {:?}", server.counters(), disk.inner.borrow().0.counters());
        server.stop().await;
        anyhow::Ok(())
    })
}
