// Pictures on their way in: files, pasted and dropped ones, the camera. And their addresses for showing and sending.
import { dialog, h, newId } from "./dom.js";
import { loadPicture, savePicture } from "./store.js";
import { words } from "./words.js";

const LARGEST_FILE = 16 << 20; // bytes; a larger file is scaled down. The server takes 64 MiB in one request by default
const LARGEST_SIDE = 3584; // pixels when scaled: twice what the model sees at most
export const LARGEST_REQUEST = 64 << 20;
// What the server reads, whatever this browser can show.
const READABLE = /^image\/(png|jpeg|webp|gif|bmp|x-ms-bmp|tiff|x-portable-(pix|gray|bit)map)$/;
const EXTENSIONS = { tif: "image/tiff", tiff: "image/tiff", bmp: "image/bmp", ppm: "image/x-portable-pixmap" };

const urls = new Map(); // picture id -> blob: address

// A picture of the tray and of a turn: {id, name, type, width, height, bytes, scaled}. Its blob is kept apart, by id.
export async function pictureFrom(file, name = file.name) {
  let blob = file;
  const type = file.type || EXTENSIONS[name.split(".").pop().toLowerCase()] || "";
  let bitmap = null;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    if (!READABLE.test(type)) throw new Error(words.notPicture(name)); // what the server cannot read either
    if (!file.size) throw new Error(words.unreadable(name));
  }
  let [width, height] = bitmap ? [bitmap.width, bitmap.height] : [0, 0];
  let scaled = false;
  if (bitmap && (!READABLE.test(type) || file.size > LARGEST_FILE)) {
    const scale = file.size > LARGEST_FILE ? Math.min(1, LARGEST_SIDE / Math.max(width, height)) : 1;
    scaled = scale < 1;
    [width, height] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    const canvas = h("canvas", { width, height });
    canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
    const target = file.size > LARGEST_FILE ? "image/jpeg" : "image/png";
    blob = await new Promise((resolve) => canvas.toBlob(resolve, target, 0.93));
  }
  bitmap?.close();
  const id = newId();
  // The bytes are copied: a File of the picker is unreadable once it changes on disk.
  const kept = new Blob([await blob.arrayBuffer()], { type: blob.type || type });
  await savePicture({ id, blob: kept });
  urls.set(id, URL.createObjectURL(kept));
  return { id, name, type: kept.type, width, height, bytes: kept.size, scaled };
}

// A blob: address for <img>, or null when the picture is gone.
export async function urlOf(id) {
  if (!urls.has(id)) {
    const kept = await loadPicture(id);
    if (!kept) return null;
    urls.set(id, URL.createObjectURL(kept.blob));
  }
  return urls.get(id);
}

// An <img> that gets its address when it is known; its box has its size from the start.
export function pictureImage(picture, alt = picture.name) {
  const image = h("img", { alt, width: picture.width || null, height: picture.height || null, draggable: "false" });
  urlOf(picture.id).then((url) => {
    if (url) image.src = url;
  });
  return image;
}

export async function dataUrlOf(id) {
  const kept = await loadPicture(id);
  if (!kept) throw new Error(words.lostPicture);
  const reader = new FileReader();
  return new Promise((resolve, reject) => {
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(kept.blob);
  });
}

export async function blobFromDataUrl(url) {
  const [head, body] = url.split(",", 2);
  const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: /^data:([^;,]+)/.exec(head)?.[1] || "image/png" });
}

export function filesOf(transfer) {
  return [...(transfer?.files || [])].filter((file) => file.type.startsWith("image/") || EXTENSIONS[file.name.split(".").pop().toLowerCase()]);
}

// A dialog with what the camera sees. Without access to one (a page over http) the phone's own camera is asked.
export async function takePicture(use) {
  if (!navigator.mediaDevices?.getUserMedia) {
    const input = h("input", { type: "file", accept: "image/*", capture: "environment" });
    input.addEventListener("change", () => input.files[0] && use(input.files[0]));
    input.click();
    return;
  }
  const video = h("video", { playsinline: true, muted: true, "aria-label": words.camera });
  const problem = h("p", { class: "problem", role: "alert" });
  let facing = "environment";
  let stream = null;
  const stop = () => stream?.getTracks().forEach((track) => track.stop());
  const start = async () => {
    stop();
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: facing, width: { ideal: 1920 } } });
      if (!box.open) return stop();
      video.srcObject = stream;
      await video.play();
    } catch (error) {
      if (error.name !== "AbortError") problem.textContent = error.name === "NotAllowedError" ? words.cameraRefused : words.cameraMissing;
    }
  };
  const capture = () => {
    if (!video.videoWidth) return;
    const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => {
      box.close();
      use(blob);
    }, "image/jpeg", 0.93);
  };
  const box = dialog(words.camera, h("div", { class: "camera" }, video, problem, h("div", { class: "buttons" },
    h("button", { type: "button", class: "plain-button",
      onclick: () => ((facing = facing === "user" ? "environment" : "user"), start()) }, words.otherCamera),
    h("button", { type: "button", class: "main-button", onclick: capture }, words.capture))));
  box.addEventListener("close", stop);
  await start();
}
