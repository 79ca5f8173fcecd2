//! One target per thing that a guest writes. Each panics if what must always hold does not.

use std::sync::Arc;

use crate::config::RateLimits;
use crate::devices::virtio::VirtioPci;
use crate::devices::virtio::block::stepping as block;
use crate::devices::virtio::harness::{DriverRing, INDIRECT, NEXT, Recorder, WRITE, memory};
use crate::devices::virtio::net::stepping as net;
use crate::disk::qcow2::crash::hostile_image;
use crate::interrupt::Interrupts;
use crate::interrupt::fake::FakeLinks;
use crate::pci::PciFunction;

/// Takes numbers off the front of the input; zeroes once it is used up.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl Input<'_> {
    pub(super) fn u8(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => 0,
        }
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn function() -> (VirtioPci, Arc<FakeLinks>) {
    let links = Arc::new(FakeLinks::default());
    let interrupts = Arc::new(Interrupts::new(links.clone()));
    let device = Box::new(Recorder::default());
    (
        VirtioPci::new(device, memory(), links.clone(), interrupts, 0xd000_0000).unwrap(),
        links,
    )
}

/// Reads and writes of configuration space, the window into the BAR included.
pub(super) fn pci_config_writes(data: &[u8]) {
    let (mut function, links) = function();
    let mut identity = [0; 4];
    function.config_read(0, &mut identity);
    let mut input = Input(data);
    while !input.is_empty() {
        let (offset, kind) = (input.u16() % 4096, input.u8());
        let offset = if kind & 0x80 == 0 {
            offset % 0x100
        } else {
            offset
        };
        let len = 1 << (kind % 3);
        let value = input.u32().to_le_bytes();
        if kind & 0x40 == 0 {
            function.config_write(offset, &value[..len]);
        } else {
            function.config_read(offset, &mut [0; 4][..len]);
        }
        for bar in function.bars() {
            assert!(bar.address != 0 && bar.address % bar.size == 0 && bar.address < 1 << 52);
        }
        assert_eq!(links.doorbells().is_empty(), function.bars().is_empty());
    }
    let mut after = [0; 4];
    function.config_read(0, &mut after);
    assert_eq!(identity, after);
}

/// A driver that says things in any order.
pub(super) fn virtio_common_config(data: &[u8]) {
    let (mut function, _links) = function();
    let mut input = Input(data);
    while !input.is_empty() {
        let kind = input.u8();
        let value = input.u64().to_le_bytes();
        let field = u64::from(kind % 64);
        match kind >> 6 {
            // Fields that matter, with the width they have.
            0 => function.bar_write(0, field & !3, &value[..4]),
            1 => match field % 4 {
                0 => function.bar_write(0, 20, &value[..1]),
                1 => function.bar_write(0, 28, &[1, 0]),
                2 => function.bar_write(0, 22, &[value[0] % 4, 0]),
                _ => function.bar_write(0, 12, &[0xff; 4]),
            },
            2 => function.bar_write(0, field, &value[..1 << (value[7] % 4)]),
            // Anywhere in the BAR.
            _ => {
                let len = 1 << (value[7] % 4);
                let offset = u64::from(u16::from_le_bytes([value[5], value[6]]) % 0x7ff8);
                if field % 2 == 0 {
                    function.bar_write(0, offset, &value[..len]);
                } else {
                    function.bar_read(0, offset, &mut [0; 8][..len]);
                }
            }
        }
        let mut status = [0];
        function.bar_read(0, 20, &mut status);
        // Ready only with agreed features.
        assert!(status[0] & 4 == 0 || status[0] & 8 != 0);
    }
    function.reset();
    let mut status = [0xff];
    function.bar_read(0, 20, &mut status);
    assert_eq!(status, [0]);
}

/// Somewhere for a buffer: as a rule in memory, sometimes at its end, sometimes in the rings, sometimes anywhere.
fn place(input: &mut Input<'_>, ring: &DriverRing) -> u64 {
    match input.u8() {
        RARE => input.u64(),
        0xa6 => 0x1f_ff00 + u64::from(input.u8()),
        0xa5 => ring.table + u64::from(input.u16()),
        other => 0x4_0000 + 0x1000 * u64::from(other),
    }
}

fn mishap(input: &mut Input<'_>, ring: &mut DriverRing) {
    let (addr, len) = (place(input, ring), input.u32());
    let (index, next) = (u16::from(input.u8()) % ring.size, u16::from(input.u8()));
    match input.u8() % 4 {
        0 => ring.descriptor(index, addr, len, u16::from(input.u8() % 8), next),
        1 => ring.raw_descriptor(
            INDIRECT_TABLE + 16 * u64::from(index),
            addr,
            len,
            u16::from(input.u8() % 8),
            next,
        ),
        2 => ring.offer(next),
        _ => ring.set_available_index(input.u16()),
    }
}

/// A byte that the generator makes about as often as any other that is neither small nor 0xff.
const RARE: u8 = 0xa7;

const INDIRECT_TABLE: u64 = 0x2_0000;
const HEADERS: u64 = 0x3_0000;

/// Offers a chain of these buffers, in the ring's own table or in an indirect one, and as a rule without a mishap.
fn offer(input: &mut Input<'_>, ring: &mut DriverRing, buffers: &[(u64, u32, bool)]) {
    let shape = input.u8();
    let head = u16::from(input.u8()) % ring.size;
    let count = buffers.len() as u16;
    for (at, (addr, len, writable)) in (0..).zip(buffers) {
        let flags = if at + 1 < count { NEXT } else { 0 } | if *writable { WRITE } else { 0 };
        if shape.is_multiple_of(4) {
            ring.raw_descriptor(
                INDIRECT_TABLE + 16 * u64::from(at),
                *addr,
                *len,
                flags,
                at + 1,
            );
        } else {
            ring.descriptor(
                (head + at) % ring.size,
                *addr,
                *len,
                flags,
                (head + at + 1) % ring.size,
            );
        }
    }
    if shape.is_multiple_of(4) {
        ring.descriptor(head, INDIRECT_TABLE, 16 * u32::from(count), INDIRECT, 0);
    }
    ring.offer(head);
    if (0xa0..=RARE).contains(&shape) {
        mishap(input, ring);
    }
}

fn ask_disk(input: &mut Input<'_>, ring: &mut DriverRing) {
    let kind = [0, 1, 4, 8, 11, 13, 1, input.u8()][usize::from(input.u8() % 8)];
    let sector = if input.u8() == RARE {
        input.u64()
    } else {
        u64::from(input.u8() % 70)
    };
    let header = HEADERS + 16 * u64::from(input.u8());
    ring.write(
        header,
        &[&[kind, 0, 0, 0, 0, 0, 0, 0][..], &sector.to_le_bytes()].concat(),
    );
    let mut buffers = vec![(header, 16, false)];
    if matches!(kind, 11 | 13) {
        let at = header + 0x1000;
        let range = [
            &sector.to_le_bytes()[..],
            &[input.u8() % 8, 0, 0, 0, input.u8() % 3, 0, 0, 0],
        ]
        .concat();
        ring.write(at, &range);
        buffers.push((at, 16, false));
    } else if kind != 4 {
        for _ in 0..input.u8() % 4 {
            let len = if input.u8() == RARE {
                input.u32()
            } else {
                512 * u32::from(input.u8() % 8)
            };
            buffers.push((place(input, ring), len, kind != 1));
        }
    }
    let status = place(input, ring);
    buffers.push((status, 1, true));
    offer(input, ring, &buffers);
}

fn offer_frame(input: &mut Input<'_>, ring: &mut DriverRing, writable: bool) {
    let count = 1 + input.u8() % 3;
    let buffers: Vec<_> = (0..count)
        .map(|_| {
            let len = if input.u8() == RARE {
                input.u32()
            } else {
                u32::from(input.u16()) % 2000
            };
            (place(input, ring), len, writable)
        })
        .collect();
    offer(input, ring, &buffers);
}

/// Limits that are met now and then, or none.
fn limits(limited: bool) -> RateLimits {
    match limited {
        true => RateLimits {
            bytes_per_second: Some(40_000),
            bytes_burst: Some(8192),
            operations_per_second: Some(20),
            operations_burst: Some(4),
        },
        false => RateLimits::default(),
    }
}

/// Requests of any shape to a disk.
pub(super) fn block_queue(data: &[u8]) {
    block_queue_outcome(data);
}

/// Says what came of it: whether the queue broke, and how many bytes were read and written.
pub(super) fn block_queue_outcome(data: &[u8]) -> (bool, u64, u64) {
    let mut input = Input(data);
    let mut ring = DriverRing::new(memory(), 8 << (input.u8() % 4));
    let mode = input.u8();
    let block = if mode & 0xf8 == 0xf8 { 4096 } else { 512 };
    let limits = limits(mode & 8 != 0);
    let mut disk = block::Stepped::new(&ring, mode & 1 != 0, block, &limits);
    disk.script(mode & 2 != 0, mode & 4 != 0);
    let mut broken = false;
    while !input.is_empty() && !broken {
        for _ in 0..=input.u8() % 4 {
            ask_disk(&mut input, &mut ring);
        }
        disk.pass(u64::from(input.u8()) * 1_000_000);
        broken = disk.turn().is_err();
    }
    disk.finish();
    assert!(
        mode & 1 == 0 || disk.is_untouched(),
        "a read-only disk was changed"
    );
    assert_eq!(disk.in_flight(), 0);
    (
        broken,
        disk.counter("read_bytes_total"),
        disk.counter("write_bytes_total"),
    )
}

/// An image made by a stranger, and requests to it.
pub(super) fn qcow2_image(data: &[u8]) {
    hostile_image(data);
}

/// Buffers of any shape for a NIC, with frames on the way in.
pub(super) fn net_queue(data: &[u8]) {
    net_queue_outcome(data);
}

/// Says what came of it: whether a queue broke, and how many frames were received and sent.
pub(super) fn net_queue_outcome(data: &[u8]) -> (bool, u64, u64) {
    let mut input = Input(data);
    let mem = memory();
    let mut rx = DriverRing::numbered(mem.clone(), 4 << (input.u8() % 4), 0);
    let mut tx = DriverRing::numbered(mem, 4 << (input.u8() % 4), 1);
    let mode = input.u8();
    let limits = limits(mode & 8 != 0);
    let mut nic = net::Stepped::new(&rx, &tx, mode.is_multiple_of(2), [&limits; 2]);
    let mut broken = false;
    while !input.is_empty() && !broken {
        for _ in 0..input.u8() % 8 {
            offer_frame(&mut input, &mut rx, true);
        }
        for _ in 0..input.u8() % 4 {
            offer_frame(&mut input, &mut tx, false);
        }
        for _ in 0..input.u8() % 4 {
            nic.arrive(12 + usize::from(input.u16()) % 4000);
        }
        nic.pass(u64::from(input.u8()) * 1_000_000);
        broken = nic.turn().is_err();
    }
    assert!(nic.sent_frames_are_frames());
    (
        broken,
        nic.counter("received_frames_total"),
        nic.counter("sent_frames_total"),
    )
}
