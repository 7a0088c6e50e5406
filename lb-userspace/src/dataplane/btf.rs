//! Where a field stands in a kernel structure, from the kernel's own BTF.
//!
//! Pure: bytes in, offset out. Format: the kernel's Documentation/bpf/btf.rst. Only what is needed to walk structures by
//! name is read; anything that does not fit the format ends in `None`.

const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;
const KIND_INT: u32 = 1;

/// A parsed type section: names and members of structures and unions.
pub struct Btf<'a> {
    strings: &'a [u8],
    /// Offset of each type's record within `types`; index = type id - 1.
    records: Vec<usize>,
    types: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl<'a> Btf<'a> {
    /// Reads the header and finds every type. `None` when the bytes are no BTF of this machine's byte order.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..2)? != 0xeb9f_u16.to_ne_bytes() {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let section = |at: usize| {
            let start = header.checked_add(word(bytes, at)? as usize)?;
            bytes.get(start..start.checked_add(word(bytes, at + 4)? as usize)?)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let mut records = Vec::new();
        let mut at = 0;
        while at < types.len() {
            records.push(at);
            let info = word(types, at + 4)?;
            let (kind, vlen) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            at += 12
                + match kind {
                    KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                    KIND_ARRAY => 12,
                    KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * vlen,
                    KIND_ENUM | KIND_FUNC_PROTO => 8 * vlen,
                    _ => 0,
                };
        }
        Some(Self { strings, records, types })
    }

    fn name(&self, offset: u32) -> Option<&'a [u8]> {
        self.strings.get(offset as usize..)?.split(|byte| *byte == 0).next()
    }

    /// Byte offset of the field `path` (member names from the outside in) of structure `name`.
    pub fn offset_of(&self, name: &str, path: &[&str]) -> Option<u32> {
        let mut bits = 0;
        let mut record = *self.records.iter().find(|at| {
            word(self.types, **at + 4).is_some_and(|info| info >> 24 & 0x1f == KIND_STRUCT)
                && word(self.types, **at).and_then(|offset| self.name(offset)) == Some(name.as_bytes())
        })?;
        for (depth, member) in path.iter().enumerate() {
            let (offset, kind) = self.member(record, member.as_bytes(), 8)?;
            bits += offset;
            if depth + 1 < path.len() {
                record = *self.records.get((kind as usize).checked_sub(1)?)?;
            }
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Bit offset and type id of a member, also within unnamed structures and unions, at most `depth` deep.
    fn member(&self, record: usize, wanted: &[u8], depth: u32) -> Option<(u32, u32)> {
        let info = word(self.types, record + 4)?;
        if !matches!(info >> 24 & 0x1f, KIND_STRUCT | KIND_UNION) || depth == 0 {
            return None;
        }
        let has_bitfields = info >> 31 == 1;
        (0..(info & 0xffff) as usize).find_map(|i| {
            let at = record + 12 + 12 * i;
            let (name, kind, offset) = (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            let offset = if has_bitfields { offset & 0xff_ffff } else { offset };
            if name == 0 {
                let inner = *self.records.get((kind as usize).checked_sub(1)?)?;
                let (more, kind) = self.member(inner, wanted, depth - 1)?;
                return Some((offset + more, kind));
            }
            (self.name(name)? == wanted).then_some((offset, kind))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct outer { int a; struct { int b; }; struct inner c; } and struct inner { int x; int y; }, by hand.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0inner\0c\0x\0y\0";
        let at = |name: &str| {
            strings
                .windows(name.len() + 2)
                .position(|w| w[0] == 0 && &w[1..=name.len()] == name.as_bytes() && w[name.len() + 1] == 0)
                .map_or(0, |p| p as u32 + 1)
        };
        let mut types: Vec<u32> = vec![at("int"), 1 << 24, 4, 32];
        types.extend([at("inner"), 4 << 24 | 2, 8, at("x"), 1, 0, at("y"), 1, 32]);
        types.extend([0, 4 << 24 | 1, 4, at("b"), 1, 0]);
        types.extend([at("outer"), 4 << 24 | 3, 16, at("a"), 1, 0, 0, 3, 32, at("c"), 2, 64]);
        let types: Vec<u8> = types.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for w in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(w.to_ne_bytes());
        }
        [bytes, types, strings.to_vec()].concat()
    }

    #[test]
    fn fields_are_found_also_in_nested_and_unnamed_structures() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset_of("outer", &["a"]), Some(0));
        assert_eq!(btf.offset_of("outer", &["b"]), Some(4));
        assert_eq!(btf.offset_of("outer", &["c", "y"]), Some(12));
        assert_eq!(btf.offset_of("outer", &["z"]), None);
        assert_eq!(btf.offset_of("missing", &["a"]), None);
    }

    #[test]
    fn truncated_bytes_never_panic() {
        let bytes = sample();
        for end in 0..bytes.len() {
            if let Some(btf) = Btf::parse(&bytes[..end]) {
                btf.offset_of("outer", &["c", "y"]);
            }
        }
    }
}
