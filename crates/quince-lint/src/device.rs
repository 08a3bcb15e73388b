//! Apple devices: what an app may use of their memory, how fast they read it, how fast they compute.
//!
//! Where the figures come from. Issues and measurements that are named were read in November 2026; specifications of
//! Apple and Wikipedia are cited as they are generally known, and were not compared with the pages again:
//! - Memory, and bandwidth of M chips: Apple's newsroom and technical specifications. Bandwidth of A chips, which Apple does
//!   not publish: width and clock of the memory (64 bit of LPDDR4X-4266, LPDDR5-6400, LPDDR5X-7500 and above), as
//!   Wikipedia's pages of the chips list it.
//! - What an app may use: measured with `os_proc_available_memory` and published. 4 GB: 2.1 and 2.4 GB with the entitlement
//!   increased-memory-limit (allenai/OLMoE.swift#38). 6 GB: 3.1 and 4.2 GB (a-ghorbani/pocketpal-ai#651). 8 GB: 3 and 6 GB
//!   (introlab/rtabmap#1446). iPads of 8 and 16 GB: 5 GB, and 6 and 12 GB with it (utmapp/UTM#3982); 3 GB on 8 GB from iPadOS
//!   26.4 on (Apple developer forums, thread 826325). 12 GB phones: 6.4 GB without (john-rocky/coreai-model-zoo#3), with it in
//!   proportion. Macs: three quarters, which is what Metal recommends as a working set.
//! - Bandwidth of the Neural Engine: measured by ANEMLL-Bench (Anemll/anemll-bench README.md), for M chips. A chips are taken
//!   to have that of the M chip of their generation, as far as their memory delivers it: not measured.
//! - GPU: teraflops of fp32 as Wikipedia's pages of the chips list them. Neural Engine: the TOPS that Apple names; from A17
//!   Pro and M4 on those are of int8, of which fp16 is half.

/// A device.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Device {
    /// What it is called on a command line: `iphone15pro`.
    pub id: &'static str,
    /// What it is called in shops.
    pub name: &'static str,
    /// Its processor.
    pub chip: &'static str,
    /// What kind of device it is.
    pub family: Family,
    /// All of its memory, in bytes.
    pub memory_bytes: u64,
    /// What one app may use of it, in bytes, without asking.
    pub app_bytes: u64,
    /// What one app may use of it with the entitlement increased-memory-limit, in bytes.
    pub entitled_bytes: u64,
    /// Bytes per second that its memory delivers.
    pub bandwidth: f64,
    /// Bytes per second that its Neural Engine reads.
    pub engine_bandwidth: f64,
    /// Operations per second of its GPU, in fp32.
    pub gpu_flops: f64,
    /// Operations per second of its Neural Engine, in fp16.
    pub engine_flops: f64,
}

/// A kind of device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// A phone.
    Phone,
    /// A tablet.
    Tablet,
    /// A Mac.
    Mac,
}

impl Device {
    /// The device of this id, or of this name with or without its spaces.
    pub fn find(name: &str) -> Option<&'static Device> {
        let plain = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
        let wanted = plain(name);
        DEVICES.iter().find(|device| device.id == wanted || plain(device.name) == wanted)
    }
}

use Family::{Mac, Phone, Tablet};

/// Every device, phones first, the older before the newer.
pub static DEVICES: &[Device] = &[
    device("iphone12", "iPhone 12", "A14", Phone, 4, [2.1, 2.4], [34.1, 61.0], [1.5, 11.0]),
    device("iphone13", "iPhone 13", "A15", Phone, 4, [2.1, 2.4], [34.1, 60.0], [1.4, 15.8]),
    device("iphone13pro", "iPhone 13 Pro", "A15", Phone, 6, [3.1, 4.2], [34.1, 60.0], [1.7, 15.8]),
    device("iphone14", "iPhone 14", "A15", Phone, 6, [3.1, 4.2], [34.1, 60.0], [1.7, 15.8]),
    device("iphone14pro", "iPhone 14 Pro", "A16", Phone, 6, [3.1, 4.2], [51.2, 60.0], [1.8, 17.0]),
    device("iphone15", "iPhone 15", "A16", Phone, 6, [3.1, 4.2], [51.2, 60.0], [1.8, 17.0]),
    device("iphone15pro", "iPhone 15 Pro", "A17 Pro", Phone, 8, [3.0, 6.0], [51.2, 63.0], [2.1, 17.5]),
    device("iphone16", "iPhone 16", "A18", Phone, 8, [3.0, 6.0], [60.0, 64.0], [1.9, 17.5]),
    device("iphone16pro", "iPhone 16 Pro", "A18 Pro", Phone, 8, [3.0, 6.0], [60.0, 64.0], [2.3, 17.5]),
    device("iphone17", "iPhone 17", "A19", Phone, 8, [3.0, 6.0], [68.3, 70.0], [2.0, 17.5]),
    device("iphone17pro", "iPhone 17 Pro", "A19 Pro", Phone, 12, [6.3, 9.0], [76.8, 70.0], [2.4, 17.5]),
    device("ipadair5", "iPad Air (M1)", "M1", Tablet, 8, [3.0, 6.0], [68.3, 61.0], [2.6, 11.0]),
    device("ipadprom1", "iPad Pro (M1, 16 GB)", "M1", Tablet, 16, [5.0, 12.0], [68.3, 61.0], [2.6, 11.0]),
    device("ipadprom2", "iPad Pro (M2)", "M2", Tablet, 8, [3.0, 6.0], [100.0, 60.0], [3.6, 15.8]),
    device("ipadprom4", "iPad Pro (M4)", "M4", Tablet, 8, [3.0, 6.0], [120.0, 64.0], [4.3, 19.0]),
    device("macm1", "Mac (M1)", "M1", Mac, 16, [12.0, 12.0], [68.3, 61.0], [2.6, 11.0]),
    device("macm1pro", "Mac (M1 Pro)", "M1 Pro", Mac, 16, [12.0, 12.0], [200.0, 55.0], [5.2, 11.0]),
    device("macm1max", "Mac (M1 Max)", "M1 Max", Mac, 32, [24.0, 24.0], [400.0, 55.0], [10.4, 11.0]),
    device("macm2", "Mac (M2)", "M2", Mac, 16, [12.0, 12.0], [100.0, 60.0], [3.6, 15.8]),
    device("macm2pro", "Mac (M2 Pro)", "M2 Pro", Mac, 16, [12.0, 12.0], [200.0, 62.0], [6.8, 15.8]),
    device("macm2max", "Mac (M2 Max)", "M2 Max", Mac, 32, [24.0, 24.0], [400.0, 62.0], [13.6, 15.8]),
    device("macm3", "Mac (M3)", "M3", Mac, 16, [12.0, 12.0], [100.0, 63.0], [3.5, 18.0]),
    device("macm3pro", "Mac (M3 Pro)", "M3 Pro", Mac, 18, [13.5, 13.5], [150.0, 63.0], [4.9, 18.0]),
    device("macm3max", "Mac (M3 Max)", "M3 Max", Mac, 36, [27.0, 27.0], [400.0, 120.0], [14.1, 18.0]),
    device("macm4", "Mac (M4)", "M4", Mac, 16, [12.0, 12.0], [120.0, 64.0], [4.3, 19.0]),
    device("macm4pro", "Mac (M4 Pro)", "M4 Pro", Mac, 24, [18.0, 18.0], [273.0, 126.0], [8.6, 19.0]),
    device("macm4max", "Mac (M4 Max)", "M4 Max", Mac, 36, [27.0, 27.0], [546.0, 119.0], [17.2, 19.0]),
];

/// A row: memory and what an app may use of it in GB; GB/s of the memory, and as the Neural Engine reads it; Tflop/s of GPU
/// and Neural Engine.
#[allow(clippy::too_many_arguments)]
const fn device(
    id: &'static str,
    name: &'static str,
    chip: &'static str,
    family: Family,
    memory: u64,
    app: [f64; 2],
    bandwidth: [f64; 2],
    tflops: [f64; 2],
) -> Device {
    Device {
        id,
        name,
        chip,
        family,
        memory_bytes: memory << 30,
        app_bytes: (app[0] * 1e9) as u64,
        entitled_bytes: (app[1] * 1e9) as u64,
        bandwidth: bandwidth[0] * 1e9,
        engine_bandwidth: bandwidth[1] * 1e9,
        gpu_flops: tflops[0] * 1e12,
        engine_flops: tflops[1] * 1e12,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_by_id_and_by_name() {
        assert_eq!(Device::find("iphone15pro").map(|d| d.name), Some("iPhone 15 Pro"));
        assert_eq!(Device::find("iPhone 15 Pro").map(|d| d.id), Some("iphone15pro"));
        assert_eq!(Device::find("iPhone"), None);
    }

    #[test]
    fn ids_are_unique_and_numbers_are_of_their_size() {
        for (i, device) in DEVICES.iter().enumerate() {
            assert!(DEVICES[..i].iter().all(|other| other.id != device.id), "{}", device.id);
            assert!(device.app_bytes <= device.entitled_bytes && device.entitled_bytes <= device.memory_bytes);
        }
    }
}
