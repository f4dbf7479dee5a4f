"""Makes data sets on disk in the shape in which they are published, from small images."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import io as scipy_io

from p2p_jax.data.images import write_image
from tests.conftest import noisy, picture, write_pairs

CLASSES = ('cat', 'dog', 'frog')


def save(path: Path, image: np.ndarray) -> None:
    """Writes any format that Pillow writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze()).save(path)


def sidd(root: Path, count: int = 6) -> None:
    """SIDD-Medium: two frames an instance, scenes shared by instances."""
    for instance in range(1, count + 1):
        scene = (instance - 1) % 4 + 1
        folder = root / 'Data' / f'{instance:04}_{scene:03}_S6_00100_00060_3200_L'
        for frame in ('010', '011'):
            clean = picture(instance)
            save(folder / f'{instance:04}_GT_SRGB_{frame}.PNG', clean)
            save(folder / f'{instance:04}_NOISY_SRGB_{frame}.PNG', noisy(clean, instance * 100 + int(frame)))
    (root / 'Scene_Instances.txt').write_text('0001_001_S6_00100_00060_3200_L\n')


def sidd_validation(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    clean = random.integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    scipy_io.savemat(root / 'ValidationGtBlocksSrgb.mat', {'ValidationGtBlocksSrgb': clean})
    scipy_io.savemat(root / 'ValidationNoisyBlocksSrgb.mat', {'ValidationNoisyBlocksSrgb': clean ^ 1})


def sidd_benchmark(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    blocks = np.zeros((2, 3, 16, 16, 3), np.uint8)
    scipy_io.savemat(root / 'BenchmarkNoisyBlocksSrgb.mat', {'BenchmarkNoisyBlocksSrgb': blocks})


def polyu(root: Path) -> None:
    """Crops with the set's slip (a scene with a trailing `_`) and full frames."""
    scenes = {'Canon5D2_5_160_3200_a': (1, 2), 'Nikon_6_1_2_b_': (3,), 'Nikon_6_1_2_b': (4,)}
    for scene, numbers in {**scenes, 'Sony_4-5_1_2_c': (5,), 'Sony_4-5_1_2_d': (6,)}.items():
        for number in numbers:
            clean = picture(number)
            save(root / 'CroppedImages' / f'{scene}_{number}_mean.JPG', clean)
            save(root / 'CroppedImages' / f'{scene}_{number}_real.JPG', noisy(clean, number))
    for number, name in enumerate(('Canon5D2_bag', 'Nikon800_map', 'SonyA7II_book')):
        save(root / 'OriginalImages' / f'{name}_mean.JPG', picture(number, 60, 80))
        save(root / 'OriginalImages' / f'{name}_Real.JPG', noisy(picture(number, 60, 80), number))


def crops(root: Path) -> None:
    for split, count in (('train', 8), ('val', 3)):
        for i in range(count):
            name = f'{i // 4:04}_SRGB_01{i // 2 % 2}_s{i % 2:03}.PNG' if split == 'train' else f'{i}.png'
            clean = picture(i)
            save(root / split / 'SIDD' / 'target_crops' / name, clean)
            save(root / split / 'SIDD' / 'input_crops' / name, noisy(clean, i))


def fmd(root: Path) -> None:
    for kind in ('Confocal_BPAE_B', 'Confocal_BPAE_G', 'TwoPhoton_MICE'):
        for view in ('1', '2', '10', '19'):
            truth = picture(int(view))[..., 0]
            save(root / kind / 'gt' / view / 'avg50.png', truth)
            for shot in range(2):
                save(root / kind / 'raw' / view / f'shot{shot}.png', noisy(truth, shot))


def inria(root: Path, side: int = 64) -> None:
    for first, city in ((0, 'austin'), (100, 'tyrol-w')):
        for number in (1, 2, 5, 6, 7, 10, 11, 36):
            photograph = picture(first + number, side, side)
            mask = (photograph[..., 0] > 127).astype(np.uint8) * 255
            save(root / 'AerialImageDataset' / 'train' / 'gt' / f'{city}{number}.tif', mask)
            save(root / 'AerialImageDataset' / 'train' / 'images' / f'{city}{number}.tif', photograph)
    save(root / 'AerialImageDataset' / 'test' / 'images' / 'bellingham1.tif', picture(1, side, side))


def ffhq(root: Path) -> None:
    for number in (0, 1, 2, 999, 1000, 60_000, 69_999):
        folder = root / 'thumbnails128x128' / f'{number // 1000 * 1000:05}'
        save(folder / f'{number:05}.png', picture(number, 128, 128))


def faces(root: Path) -> None:
    for number in range(8):
        save(root / f'{number:05}.png', picture(number, 128, 128))


def cifar_images(count: int, seed: int) -> tuple[np.ndarray, list[int]]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), [i % len(CLASSES) for i in range(count)]


def cifar_binary(root: Path) -> None:
    folder = root / 'cifar-10-batches-bin'
    folder.mkdir(parents=True)
    (folder / 'batches.meta.txt').write_text('\n'.join(CLASSES) + '\n')
    for number, name in enumerate([*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']):
        images, labels = cifar_images(4, number)
        planes = images.transpose(0, 3, 1, 2).reshape(4, -1)
        rows = np.concatenate([np.array(labels, np.uint8)[:, None], planes], 1)
        (folder / f'{name}.bin').write_bytes(rows.tobytes())


def cifar_python(root: Path) -> None:
    folder = root / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    with (folder / 'batches.meta').open('wb') as file:
        pickle.dump({b'label_names': [name.encode() for name in CLASSES]}, file, protocol=2)
    for number, name in enumerate([*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']):
        images, labels = cifar_images(4, number)
        content = {b'data': images.transpose(0, 3, 1, 2).reshape(4, -1), b'labels': labels, b'batch_label': b'x'}
        with (folder / name).open('wb') as file:
            pickle.dump(content, file, protocol=2)


def cifar_kaggle(root: Path) -> None:
    images, labels = cifar_images(9, 0)
    rows = ['id,label']
    for number, (image, label) in enumerate(zip(images, labels, strict=True), 1):
        save(root / 'train' / f'{number}.png', image)
        rows.append(f'{number},{CLASSES[label]}')
    (root / 'trainLabels.csv').write_text('\n'.join(rows) + '\n')


def classes(root: Path) -> None:
    for split, count in (('train', 3), ('test', 2)):
        for label, kind in enumerate(CLASSES):
            for i in range(count):
                save(
                    root / split / kind / f'{i}.png', picture(label * 10 + i + (100 if split == 'test' else 0), 32, 32)
                )


def class_folders(root: Path) -> None:
    for label, kind in enumerate(CLASSES):
        for i in range(4):
            save(root / kind / f'{i}.jpg', picture(label * 10 + i, 20 + i, 30))


def class_zip(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / 'photos.zip', 'w') as archive:
        for label, kind in enumerate(CLASSES):
            for i in range(3):
                stream = io.BytesIO()
                Image.fromarray(picture(label * 10 + i, 32, 32)).save(stream, 'PNG')
                archive.writestr(f'photos/{kind}/{i}.png', stream.getvalue())


def pairs(root: Path) -> None:
    write_pairs(root, 10)


def split_pairs(root: Path) -> None:
    for seed, split in ((0, 'train'), (100, 'val'), (200, 'test')):
        write_pairs(root / split, 3, seed)


def side_by_side(root: Path) -> None:
    for i in range(6):
        save(root / 'train' / f'{i}.png', np.concatenate([picture(i, 32, 32), 255 - picture(i, 32, 32)], 1))


def listed(root: Path) -> None:
    rows = ['input,target,scene']
    for i in range(6):
        write_image(root / 'a' / f'{i}.png', noisy(picture(i), i))
        write_image(root / 'b' / f'other{i}.png', picture(i))
        rows.append(f'a/{i}.png,b/other{i}.png,s{i // 2}')
    (root / 'pairs.csv').write_text('\n'.join(rows) + '\n')


def listed_by_split(root: Path) -> None:
    for split in ('train', 'val', 'test'):
        for i in range(2):
            write_image(root / 'images' / f'{split}{i}n.png', noisy(picture(i), i))
            write_image(root / 'images' / f'{split}{i}.png', picture(i))
        rows = [f'images/{split}{i}n.png images/{split}{i}.png' for i in range(2)]
        (root / f'{split}.txt').write_text('\n'.join(rows))


def clean(root: Path) -> None:
    for i in range(6):
        save(root / f'{i}.png', picture(i)[..., 0])
