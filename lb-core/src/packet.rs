//! How packets are seen: typed reads and writes at an offset, never slices.
//!
//! The verifier refuses slices into packets, so everything that touches one goes through these traits: over packet
//! pointers in the kernel, over a vector on the host. Offsets count from the first byte of the Ethernet header.
//!
//! Two kinds of offset: fixed ones (constants after inlining) and those that came from the packet itself, which the
//! kernel's view has to bound in the way the verifier understands; the latter go through the `_at` methods.

/// The largest offset that [`PacketView::bytes_at`] and [`PacketEdit::put_at`] accept.
pub const OFFSET_MAX: usize = 0x3fff;

/// Reading a frame.
pub trait PacketView {
    /// Bytes of the frame, Ethernet header included.
    fn len(&self) -> usize;
    /// `N` bytes at a fixed offset; `None` beyond the end.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// `N` bytes at an offset that came from the packet; `None` beyond the end or beyond [`OFFSET_MAX`].
    fn bytes_at<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// Whether there is no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Changing a frame. `None` means that nothing was changed.
pub trait PacketEdit: PacketView {
    /// Overwrites `N` bytes at a fixed offset.
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;
    /// Overwrites `N` bytes at an offset that came from the packet, at most [`OFFSET_MAX`].
    fn put_at<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;
    /// Puts `n` bytes of unspecified content in front.
    fn grow_head(&mut self, n: usize) -> Option<()>;
    /// Cuts the frame to `len` bytes, which must not be more than it has.
    fn truncate(&mut self, len: usize) -> Option<()>;
}
