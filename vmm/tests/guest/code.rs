//! Small programs in machine code, and the wrappers that make kernels of them.

/// 64-bit code, built instruction by instruction.
#[derive(Default, Clone)]
pub struct Code(Vec<u8>);

impl Code {
    pub fn new() -> Self {
        Self::default()
    }

    fn push(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// `mov dx, port`
    fn dx(self, port: u16) -> Self {
        self.push(&[0x66, 0xba]).push(&port.to_le_bytes())
    }

    /// `out port, byte`
    pub fn out8(self, port: u16, value: u8) -> Self {
        self.dx(port).push(&[0xb0, value, 0xee])
    }

    /// `out port, word`
    pub fn out16(self, port: u16, value: u16) -> Self {
        self.dx(port)
            .push(&[0x66, 0xb8])
            .push(&value.to_le_bytes())
            .push(&[0x66, 0xef])
    }

    /// `out port, dword`
    pub fn out32(self, port: u16, value: u32) -> Self {
        self.dx(port)
            .push(&[0xb8])
            .push(&value.to_le_bytes())
            .push(&[0xef])
    }

    /// `in al, port` and `out COM1, al`
    pub fn show_port(self, port: u16) -> Self {
        self.dx(port).push(&[0xec]).dx(0x3f8).push(&[0xee])
    }

    /// The byte at a physical address goes to COM1.
    pub fn show_memory(self, address: u64) -> Self {
        self.push(&[0x48, 0xb8])
            .push(&address.to_le_bytes())
            .push(&[0x8a, 0x00])
            .dx(0x3f8)
            .push(&[0xee])
    }

    /// `mov byte [address], value`
    pub fn store(self, address: u64, value: u8) -> Self {
        self.push(&[0x48, 0xb8])
            .push(&address.to_le_bytes())
            .push(&[0xc6, 0x00, value])
    }

    /// Prints on COM1.
    pub fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |code, byte| code.out8(0x3f8, byte))
    }

    /// Prints with one string instruction; the text is stored in memory first.
    pub fn print_string(self, text: &str) -> Self {
        let at = 0x20_0000u64;
        let stored = text
            .bytes()
            .zip(at..)
            .fold(self, |code, (byte, address)| code.store(address, byte));
        // mov rsi, at; mov rcx, len; mov dx, 0x3f8; cld; rep outsb
        stored
            .push(&[0x48, 0xbe])
            .push(&at.to_le_bytes())
            .push(&[0x48, 0xb9])
            .push(&(text.len() as u64).to_le_bytes())
            .dx(0x3f8)
            .push(&[0xfc, 0xf3, 0x6e])
    }

    /// Waits until `port` has one of the bits of `mask`: `in al, dx; test al, mask; jz -5`
    pub fn wait_bit(self, port: u16, mask: u8) -> Self {
        self.dx(port).push(&[0xec, 0xa8, mask, 0x74, 0xfb])
    }

    /// Sends back what is typed, for ever.
    pub fn echo(self) -> Self {
        self.push(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7])
            .push(&[0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb, 0xef])
    }

    /// Writes pseudo-random numbers of `width` bytes to pseudo-random places in `base..=base + mask`, and reads them back.
    pub fn poke(self, base: u32, mask: u32, width: u8, times: u32, seed: u64) -> Self {
        let (store, load): (&[u8], &[u8]) = match width {
            1 => (&[0x88, 0x10], &[0x8a, 0x10]),
            2 => (&[0x66, 0x89, 0x10], &[0x66, 0x8b, 0x10]),
            4 => (&[0x89, 0x10], &[0x8b, 0x10]),
            _ => (&[0x48, 0x89, 0x10], &[0x48, 0x8b, 0x10]),
        };
        let code = self
            .push(&[0x48, 0xbb])
            .push(&(seed | 1).to_le_bytes())
            .push(&[0xb9])
            .push(&times.to_le_bytes());
        let start = code.0.len();
        // xorshift64 in rbx
        let code = code
            .push(&[0x48, 0x89, 0xd8, 0x48, 0xc1, 0xe0, 13, 0x48, 0x31, 0xc3])
            .push(&[0x48, 0x89, 0xd8, 0x48, 0xc1, 0xe8, 7, 0x48, 0x31, 0xc3])
            .push(&[0x48, 0x89, 0xd8, 0x48, 0xc1, 0xe0, 17, 0x48, 0x31, 0xc3])
            // eax = (rbx & mask) + base; rdx = rbx >> 32
            .push(&[0x89, 0xd8, 0x25])
            .push(&mask.to_le_bytes())
            .push(&[0x05])
            .push(&base.to_le_bytes())
            .push(&[0x48, 0x89, 0xda, 0x48, 0xc1, 0xea, 32])
            .push(store)
            .push(load)
            // dec ecx; jnz start
            .push(&[0xff, 0xc9, 0x0f, 0x85]);
        let back = start as i64 - (code.0.len() as i64 + 4);
        code.push(&(back as i32).to_le_bytes())
    }

    /// Spins for ever without leaving the guest.
    pub fn spin(self) -> Self {
        self.push(&[0xeb, 0xfe])
    }

    /// An undefined instruction without an interrupt table: a triple fault.
    pub fn crash(self) -> Self {
        self.push(&[0x0f, 0x0b])
    }

    /// Off by ACPI.
    pub fn power_off(self) -> Self {
        self.out16(0x604, (5 << 10) | (1 << 13)).spin()
    }

    /// As a bzImage whose 64-bit entry this is.
    pub fn bzimage(&self) -> Vec<u8> {
        let mut image = vec![0u8; 1024 + 0x200];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        image[0x236..0x238].copy_from_slice(&1u16.to_le_bytes());
        image.extend_from_slice(&self.0);
        image
    }

    /// As an ELF kernel whose PVH entry this is. The instructions used here mean the same in 32-bit code, but for
    /// memory accesses.
    pub fn pvh(&self) -> Vec<u8> {
        const BASE: u64 = 0x10_0000;
        let (headers, note, text) = (64u64, 64 + 2 * 56u64, 256u64);
        let mut elf = Vec::new();
        elf.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        elf.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
        for value in [BASE, headers, 0] {
            elf.extend_from_slice(&value.to_le_bytes());
        }
        elf.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let mut header = |kind: u32, offset: u64, address: u64, size: u64| {
            elf.extend_from_slice(&kind.to_le_bytes());
            elf.extend_from_slice(&7u32.to_le_bytes());
            for value in [offset, address, address, size, size, 4] {
                elf.extend_from_slice(&value.to_le_bytes());
            }
        };
        header(1, text, BASE, self.0.len() as u64);
        header(4, note, 0, 20);
        for value in [4u32, 4, 18] {
            elf.extend_from_slice(&value.to_le_bytes());
        }
        elf.extend_from_slice(b"Xen\0");
        elf.extend_from_slice(&(BASE as u32).to_le_bytes());
        elf.resize(text as usize, 0);
        elf.extend_from_slice(&self.0);
        elf
    }
}
