//! The image service.

use criox_cri::v1::{ImageFilter, ImageFsInfoRequest, ImageSpec, ListImagesRequest};
use testkit::harness::Test;
use testkit::{Entry, Image, Node, Result, busybox_image};
use tonic::Code;

use crate::NODE;
use crate::pod::{Pod, SERVICE, refused};

pub(crate) const TESTS: &[Test] = &[
    ("an absent image is an empty answer, by any kind of name", || NODE.test(absent)),
    ("an image is found by tag, digest and ID, and described", || NODE.test(found)),
    ("one ID is used everywhere", || NODE.test(one_id)),
    ("an image list can be asked for one reference", || NODE.test(filter)),
    (
        "a name is removed alone while others remain, an ID with all its names, and again without error",
        || NODE.test(remove),
    ),
    ("twenty pulls of one image at once give one ID", || NODE.test(together)),
    ("a tag that was moved is pulled anew, and the old image keeps its digest", || NODE.test(moved_tag)),
    ("the usage of images grows with a pull and falls with a removal", || NODE.test(usage)),
    ("an image whose container runs loses no file when it is removed", || NODE.test(in_use)),
    ("an empty name and an unknown handler are refused", || NODE.test(refusals)),
];

/// An image of its own, not pulled yet.
fn image(node: &Node, name: &str) -> Result<(Image, String)> {
    let image = busybox_image()?.layer(&[Entry::file("etc/own", format!("{name}\n"))]).build()?;
    let reference = image.push(&node.registry, &format!("images/{name}"), "1")?;
    Ok((image, reference))
}

fn absent(node: &Node) -> Result {
    let address = node.registry.address();
    let hex = "0123456789abcdef".repeat(4);
    for name in [
        format!("{address}/no/such:1"),
        format!("{address}/no/such@sha256:{hex}"),
        hex.clone(),
        format!("sha256:{hex}"),
        "short-name".to_owned(),
        "UPPER CASE and blanks".to_owned(),
    ] {
        assert!(node.cri.image(&name)?.is_none(), "{name}");
        node.cri.remove_image(&name)?;
    }
    Ok(())
}

fn found(node: &Node) -> Result {
    let (image, reference) = image(node, "found")?;
    assert_eq!(node.cri.pull(&reference)?, image.id());
    let repository = reference.trim_end_matches(":1");
    let digested = format!("{repository}@{}", image.manifest.digest);
    for name in [reference.as_str(), &digested, image.id(), &format!("sha256:{}", image.id())] {
        let found = node.cri.image(name)?.ok_or_else(|| format!("{name} is not found"))?;
        assert_eq!(found.id, image.id());
        assert_eq!(found.repo_tags, std::slice::from_ref(&reference));
        assert_eq!(found.repo_digests, std::slice::from_ref(&digested));
        let layers: usize = image.layers.iter().map(|layer| layer.bytes.len()).sum();
        assert!(found.size >= layers as u64, "{} of {layers}", found.size);
        assert!(!found.pinned);
    }
    // Pulled by digest an image has no tag.
    node.cri.remove_image(image.id())?;
    node.cri.pull(&digested)?;
    let found = node.cri.image(&digested)?.ok_or("it was pulled by digest")?;
    assert!(found.repo_tags.is_empty(), "{found:?}");
    assert_eq!(found.repo_digests, [digested]);
    node.cri.remove_image(image.id())?;
    Ok(())
}

fn one_id(node: &Node) -> Result {
    let pulled = node.cri.pull(&node.image)?;
    let listed = node.cri.list_images()?.into_iter().find(|image| image.repo_tags.contains(&node.image));
    assert_eq!(listed.ok_or("it is listed")?.id, pulled);
    let pod = Pod::without_network(node, "one-id")?;
    // As the kubelet does: by the ID that it got.
    let config = node.cri.container("c", &pulled, &["true"]);
    let id = pod.create(&config)?;
    assert_eq!(node.cri.status(&id)?.image_id, pulled);
    assert_eq!(node.cri.list(None)?.pop().ok_or("a container")?.image_id, pulled);
    Ok(())
}

fn filter(node: &Node) -> Result {
    let list = |name: &str| -> Result<Vec<String>> {
        let spec = ImageSpec { image: name.to_owned(), ..ImageSpec::default() };
        let request = ListImagesRequest { filter: Some(ImageFilter { image: Some(spec) }) };
        let listed = node.cri.call(node.cri.images().list_images(request))?.images;
        Ok(listed.into_iter().flat_map(|image| image.repo_tags).collect())
    };
    assert_eq!(list(&node.image)?, std::slice::from_ref(&node.image));
    assert!(list(&format!("{}/no/such:1", node.registry.address()))?.is_empty());
    assert!(list("")?.contains(&node.image));
    Ok(())
}

fn remove(node: &Node) -> Result {
    let (image, one) = image(node, "names")?;
    let two = image.push(&node.registry, "images/other-name", "2")?;
    for name in [&one, &two] {
        assert_eq!(node.cri.pull(name)?, image.id());
    }
    let mut tags = node.cri.image(image.id())?.ok_or("it is there")?.repo_tags;
    tags.sort();
    assert_eq!(tags, [one.clone(), two.clone()]);
    // CRI-O's way, which differs from the interface: a name goes alone.
    node.cri.remove_image(&one)?;
    assert!(node.cri.image(&one)?.is_none());
    assert_eq!(node.cri.image(&two)?.ok_or("the other name stays")?.repo_tags, std::slice::from_ref(&two));
    node.cri.pull(&one)?;
    node.cri.remove_image(image.id())?;
    for name in [one.as_str(), &two, image.id()] {
        assert!(node.cri.image(name)?.is_none(), "{name}");
        node.cri.remove_image(name)?;
    }
    Ok(())
}

fn together(node: &Node) -> Result {
    let (image, reference) = image(node, "together")?;
    std::thread::scope(|scope| -> Result {
        let pulls: Vec<_> = (0..20).map(|_| scope.spawn(|| node.cri.pull(&reference))).collect();
        for pull in pulls {
            assert_eq!(pull.join().expect("no panic")?, image.id());
        }
        Ok(())
    })?;
    node.cri.remove_image(image.id())?;
    Ok(())
}

fn moved_tag(node: &Node) -> Result {
    let (old, reference) = image(node, "moved")?;
    node.cri.pull(&reference)?;
    let new = busybox_image()?.layer(&[Entry::file("etc/own", "new\n")]).build()?;
    assert_eq!(new.push(&node.registry, "images/moved", "1")?, reference);
    assert_eq!(node.cri.image(&reference)?.ok_or("not asked again")?.id, old.id());
    assert_eq!(node.cri.pull(&reference)?, new.id());
    assert_eq!(node.cri.image(&reference)?.ok_or("the new one")?.id, new.id());
    let kept = node.cri.image(old.id())?.ok_or("the old one stays until it is removed")?;
    assert!(kept.repo_tags.is_empty() && kept.repo_digests.len() == 1, "{kept:?}");
    for image in [&old, &new] {
        node.cri.remove_image(image.id())?;
    }
    Ok(())
}

fn usage(node: &Node) -> Result {
    let used = || -> Result<u64> {
        let info = node.cri.call(node.cri.images().image_fs_info(ImageFsInfoRequest {}))?;
        let filesystem = info.image_filesystems.first().ok_or("an image file system")?;
        assert!(filesystem.timestamp > 0);
        let point = filesystem.fs_id.as_ref().ok_or("a mount point")?.mountpoint.clone();
        assert!(std::path::Path::new(&point).starts_with(node.daemon.root()), "{point}");
        Ok(filesystem.used_bytes.as_ref().ok_or("the kubelet panics without it")?.value)
    };
    let before = used()?;
    assert!(before > 1 << 20, "busybox alone has more than {before} bytes");
    let big = busybox_image()?.layer(&[Entry::file("big", vec![7; 3 << 20])]).build()?;
    let reference = big.push(&node.registry, "images/big", "1")?;
    node.cri.pull(&reference)?;
    let with = used()?;
    assert!(with >= before + (3 << 20), "{before} {with}");
    node.cri.remove_image(&reference)?;
    assert!(used()? < with - (2 << 20));
    Ok(())
}

fn in_use(node: &Node) -> Result {
    let (image, reference) = image(node, "in-use")?;
    node.cri.pull(&reference)?;
    let pod = Pod::without_network(node, "in-use")?;
    let id = pod.up(&node.cri.container("c", &reference, &["sh", "-c", SERVICE]))?;
    // Refused or done: in either case the container has its files.
    let removed = node.cri.remove_image(&reference);
    assert_eq!(pod.exec(&id, "cat /etc/own")?, "in-use");
    if let Err(error) = &removed {
        assert!(error.message().contains("use"), "{error}");
    }
    node.cri.remove(&id)?;
    node.cri.remove_image(image.id())?;
    assert!(node.cri.image(image.id())?.is_none());
    Ok(())
}

fn refusals(node: &Node) -> Result {
    let message = refused(node.cri.pull(""), Code::InvalidArgument)?;
    assert!(message.contains("image"), "{message}");
    refused(node.cri.image(""), Code::InvalidArgument)?;
    refused(node.cri.remove_image(""), Code::InvalidArgument)?;
    refused(node.cri.pull("UPPER/case:1"), Code::InvalidArgument)?;
    let spec = ImageSpec {
        image: node.image.clone(),
        runtime_handler: "no-such".to_owned(),
        ..ImageSpec::default()
    };
    let request = criox_cri::v1::PullImageRequest { image: Some(spec), ..Default::default() };
    let message = refused(node.cri.call(node.cri.images().pull_image(request)), Code::InvalidArgument)?;
    assert!(message.contains("no-such"), "{message}");
    Ok(())
}
