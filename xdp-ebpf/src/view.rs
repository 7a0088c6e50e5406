//! The frame that XDP hands over, through lb-core's packet traits. The only place that touches packet pointers.
//!
//! Invariant: `data` and `data_end` are those of the context since the last call that moves them, and no pointer derived
//! from older ones is kept.

use core::{arch::asm, ptr};

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
};
use lb_core::{
    packet::{OFFSET_MAX, PacketEdit, PacketView},
    wire::take,
};

/// A frame.
pub struct View {
    ctx: *mut xdp_md,
    data: *mut u8,
    data_end: *mut u8,
}

impl View {
    /// The frame of a context that the kernel passed to the program.
    #[inline(always)]
    pub fn new(ctx: *mut xdp_md) -> Self {
        let mut view = Self { ctx, data: ptr::null_mut(), data_end: ptr::null_mut() };
        view.refresh();
        view
    }

    #[inline(always)]
    fn refresh(&mut self) {
        // SAFETY: `ctx` is the program's own context, valid while it runs.
        let (data, data_end) = unsafe {
            (ptr::read_volatile(&raw const (*self.ctx).data), ptr::read_volatile(&raw const (*self.ctx).data_end))
        };
        self.data = data as usize as *mut u8;
        self.data_end = data_end as usize as *mut u8;
    }

    /// A pointer to `N` bytes inside the frame.
    #[inline(always)]
    fn within<const N: usize>(&self, start: *mut u8) -> Option<*mut [u8; N]> {
        if start.wrapping_add(N) > self.data_end { None } else { Some(start.cast()) }
    }

    /// A pointer to `N` bytes at an offset that came from the packet.
    #[inline(always)]
    fn within_at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        if offset > OFFSET_MAX {
            return None;
        }
        let mut offset = offset as u64;
        // VERIFIER: "math between pkt pointer and register with unbounded min value is not allowed". The mask repeats the
        // compare above in a form that survives; the assembly keeps the compiler from removing it.
        // SAFETY: one instruction on a register.
        unsafe { asm!("{0} &= {mask}", inout(reg) offset, mask = const OFFSET_MAX, options(pure, nomem, nostack)) };
        let mut start = self.data.wrapping_add(offset as usize);
        // VERIFIER: "invalid access to packet". The compare with data_end and the access must use one register: without
        // this the compiler compares data + (offset + N) and reads data + offset, which the verifier does not connect.
        // (A move rather than no instruction: the kernel refuses two lines of debug information for one instruction.)
        // SAFETY: one instruction on a register.
        unsafe { asm!("{0} = {0}", inout(reg) start, options(pure, nomem, nostack)) };
        self.within(start)
    }
}

impl PacketView for View {
    #[inline(always)]
    fn len(&self) -> usize {
        (self.data_end as usize).wrapping_sub(self.data as usize)
    }

    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let bytes = self.within::<N>(self.data.wrapping_add(offset))?;
        // SAFETY: `within` compared the N bytes with the end of the frame; arrays of bytes have no alignment.
        Some(unsafe { bytes.read_unaligned() })
    }

    #[inline(always)]
    fn bytes_at<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let bytes = self.within_at::<N>(offset)?;
        // SAFETY: as in `bytes`.
        Some(unsafe { bytes.read_unaligned() })
    }
}

impl PacketEdit for View {
    #[inline(always)]
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let place = self.within::<N>(self.data.wrapping_add(offset))?;
        // SAFETY: `within` compared the N bytes with the end of the frame, which belongs to this program while it runs.
        unsafe { store(place, &bytes) };
        Some(())
    }

    #[inline(always)]
    fn put_at<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let place = self.within_at::<N>(offset)?;
        // SAFETY: as in `put`.
        unsafe { store(place, &bytes) };
        Some(())
    }

    #[inline(always)]
    fn grow_head(&mut self, n: usize) -> Option<()> {
        // SAFETY: the helper takes the program's own context.
        let result = unsafe { bpf_xdp_adjust_head(self.ctx, -(n as i32)) };
        self.refresh();
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn truncate(&mut self, len: usize) -> Option<()> {
        let delta = len as i32 - self.len() as i32;
        if delta > 0 {
            return None;
        }
        // SAFETY: the helper takes the program's own context.
        let result = unsafe { bpf_xdp_adjust_tail(self.ctx, delta) };
        self.refresh();
        (result == 0).then_some(())
    }
}

/// Writes the bytes in words.
///
/// VERIFIER: "Global function memmove() doesn't return scalar": a copy of a whole array from a map to a packet becomes a
/// call, copies of words become loads and stores.
///
/// # Safety
/// `place` is valid for writes of N bytes.
#[inline(always)]
unsafe fn store<const N: usize>(place: *mut [u8; N], bytes: &[u8; N]) {
    let place = place.cast::<u8>();
    let mut done = 0;
    while done + 8 <= N {
        // SAFETY: the eight bytes from `done` are among the N.
        unsafe { place.add(done).cast::<u64>().write_unaligned(u64::from_ne_bytes(take(bytes, done))) };
        done += 8;
    }
    if done + 4 <= N {
        // SAFETY: the four bytes from `done` are among the N.
        unsafe { place.add(done).cast::<u32>().write_unaligned(u32::from_ne_bytes(take(bytes, done))) };
        done += 4;
    }
    if done + 2 <= N {
        // SAFETY: the two bytes from `done` are among the N.
        unsafe { place.add(done).cast::<u16>().write_unaligned(u16::from_ne_bytes(take(bytes, done))) };
        done += 2;
    }
    if done < N {
        let [last] = take(bytes, done);
        // SAFETY: `done` is below N.
        unsafe { place.add(done).write(last) };
    }
}
