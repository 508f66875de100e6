"""What the service answers over real HTTP: the numbers of the Python interface, whatever a request is batched with."""

import io
import re
import threading
from base64 import b64decode
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from tests.serving.conftest import as_pixels, assert_pixels, picture, png, serving, text_of, upper_half


def known_part(vae, seed):
    image_HWC = np.asarray(picture(seed), np.float32) / 255
    return vae.observe(image_HWC[None], upper_half())


def question(seed, draws=1):
    mask = Image.fromarray(upper_half())
    return {"image": text_of(picture(seed)), "mask": text_of(mask), "draws": draws, "seed": seed}


def test_answers_are_those_of_the_python_interface(client, vae):
    found = client.images("/v1/inpaint", question(3, draws=4))
    assert_pixels(found, as_pixels(vae.inpaint(known_part(vae, 3), draws=4, seed=3)[:, 0]))
    assert (found[:, :8] == np.asarray(picture(3))[:8]).all()
    found = client.images("/v1/infer", question(3, draws=4))
    assert_pixels(found, as_pixels(vae.infer(known_part(vae, 3), draws=4, seed=3)[:, 0]))
    assert_pixels(client.images("/v1/generate", {"count": 3, "seed": 9}), as_pixels(vae.generate(3, seed=9)))
    status, answer = client.ask("/v1/encode", {key: question(3)[key] for key in ("image", "mask")})
    code = vae.encode(known_part(vae, 3))
    assert status == 200
    np.testing.assert_allclose(answer["mu"], code.mu_BZ[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(answer["logvar"], code.logvar_BZ[0].numpy(), atol=1e-5)
    pair = {"image": text_of(picture(1)), "other": text_of(picture(2)), "steps": 5}
    images = [np.asarray(picture(seed), np.float32)[None] / 255 for seed in (1, 2)]
    assert_pixels(client.images("/v1/interpolate", pair), as_pixels(vae.interpolate(*images, steps=5)[:, 0]))


def test_an_answer_does_not_depend_on_what_it_is_batched_with(vae):
    with serving({"digits": vae}, wait_s=0.05) as client:
        start = threading.Barrier(12)

        def ask(number):
            start.wait()
            if number % 4 == 3:
                return client.images("/v1/generate", {"count": 1 + number % 3, "seed": number})
            return client.images("/v1/inpaint", question(number, draws=2))

        with ThreadPoolExecutor(12) as pool:
            for _ in range(2):
                found = list(pool.map(ask, range(12)))
        metrics = client.ask("/metrics")[1]
    for number, images in enumerate(found):
        if number % 4 == 3:
            assert_pixels(images, as_pixels(vae.generate(1 + number % 3, seed=number)))
        else:
            assert_pixels(images, as_pixels(vae.inpaint(known_part(vae, number), draws=2, seed=number)[:, 0]))
    batches = float(re.search(r'batch_images_count{model="digits"} (\S+)', metrics)[1])
    assert batches < 24
    assert 'biglearn_service_requests_total{route="inpaint",status="200"} 18.0' in metrics
    assert 'biglearn_service_waiting_images{model="digits"} 0.0' in metrics
    assert 'biglearn_service_most_waiting_images{model="digits"} 1024.0' in metrics


def test_files_may_come_as_a_form(client):
    parts = {name: value for name, value in question(5, draws=2).items() if name in ("draws", "seed")}
    files = {"image": png(picture(5)), "mask": png(Image.fromarray(upper_half()))}
    body = b""
    for name, value in {**parts, **files}.items():
        kind = b'; filename="x.png"' if name in files else b""
        content = value if isinstance(value, bytes) else str(value).encode()
        body += (
            b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n' % (name.encode(), kind) + content + b"\r\n"
        )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    as_form = client.images("/v1/inpaint", body + b"--b--\r\n", headers)
    assert_pixels(as_form, client.images("/v1/inpaint", question(5, draws=2)))


def test_what_is_done_to_an_image_is_said(client):
    holes = picture(0, alpha=upper_half())
    assert (client.images("/v1/inpaint", {"image": text_of(holes)})[0, :8] == np.asarray(picture(0))[:8]).all()
    for image, note in (
        (picture(0, size=40), "cut to its centre square and resized, 40x40 to 16x16 pixels"),
        (picture(0), "nothing of the image is missing"),
        (picture(0, alpha=np.zeros((16, 16))), "nothing of the image is known"),
        (picture(0, alpha=np.arange(256).reshape(16, 16) > 60), "known pixels lie in partly known patches"),
    ):
        status, answer = client.ask("/v1/inpaint", {"image": text_of(image)})
        assert status == 200
        assert note in " ".join(answer["notes"])


def test_several_models_are_asked_by_their_names(vae):
    with serving({"one": vae, "two": vae}) as client:
        status, answer = client.ask("/v1/generate", {})
        assert (status, answer["error"]) == (422, "model: give one of one, two")
        assert client.images("/v1/generate", {"model": "two"}).shape == (1, 16, 16, 3)
        listed = client.ask("/v1/models")[1]["models"]
    assert listed["one"] == listed["two"]
    assert (listed["one"]["image_size"], listed["one"]["method"]) == (16, "biglearn_u")


def test_it_says_how_it_is_and_what_can_be_asked(client):
    assert client.ask("/healthz") == (200, {"status": "ok"})
    assert client.ask("/readyz") == (200, {"status": "ready"})
    described = client.ask("/openapi.json")[1]["paths"]
    assert {"/v1/inpaint", "/v1/generate", "/v1/encode", "/v1/interpolate"} <= described.keys()
    of_inpaint = described["/v1/inpaint"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"image", "mask", "draws", "seed"} <= of_inpaint["properties"].keys()


def test_an_image_comes_back_as_it_is_taken(client):
    (content,) = client.ask("/v1/read", {"image": text_of(picture(0, alpha=upper_half()))})[1]["images"]
    with Image.open(io.BytesIO(b64decode(content))) as taken:
        assert taken.mode == "RGBA"
        assert (np.asarray(taken)[:8, :, :3] == np.asarray(picture(0))[:8]).all()
        assert (np.asarray(taken)[..., 3] == 255 * upper_half()).all()


def test_other_ways_to_fill_are_there_when_they_have_been_learned(vae):
    fillers: Future = Future()
    asked = {key: question(3)[key] for key in ("image", "mask")}
    with serving({"digits": vae, "alone": vae}, fillers={"digits": fillers}) as client:
        assert client.ask("/v1/fill", asked | {"model": "alone"})[0] == 422
        assert client.ask("/v1/fill", asked | {"model": "digits"})[0] == 503
        fillers.set_result(
            {
                "grey": lambda given, _: given.complete(given.images_BHWC * 0 + 0.5)[None],
                "drawn": lambda given, index: vae.inpaint(given, seed=1, first_index=index),
            }
        )
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: client.ask("/v1/fill", asked | {"model": "digits"})[1], range(6)))
    assert answers[0]["names"] == ["grey", "drawn"]
    grey, drawn = (np.asarray(Image.open(io.BytesIO(b64decode(each)))) for each in answers[0]["images"])
    assert (grey[8:] == 128).all()
    assert (grey[:8] == np.asarray(picture(3))[:8]).all()
    assert_pixels(drawn, as_pixels(vae.inpaint(known_part(vae, 3), seed=1)[0, 0]))
    assert all(answer == answers[0] for answer in answers)
