// Conversations and the files of their pictures, kept in the browser's IndexedDB. Nothing of it is sent.
// If storage is blocked (a frame in another site, some private windows) it lasts as long as the page.

/** @typedef {"conversations" | "pictures"} Kind */

const NAME = "ask-a-picture";
/** @type {Record<Kind, Map<string, any>>} */
const unkept = { conversations: new Map(), pictures: new Map() };

/** @type {Promise<IDBDatabase | null>} */
const opening = new Promise((resolve) => {
  try {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => Object.keys(unkept).forEach((kind) => request.result.createObjectStore(kind));
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => resolve(null);
  } catch { // where cookies are blocked, reading the name `indexedDB` raises
    resolve(null);
  }
});

/** Whether anything outlasts the page. */
export const isKept = async () => (await opening) !== null;

/**
 * @param {Kind} kind
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest} ask
 * @param {(map: Map<string, any>) => any} instead
 */
async function asked(kind, mode, ask, instead) {
  const database = await opening;
  if (!database) return instead(unkept[kind]);
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(kind, mode);
    const request = ask(transaction.objectStore(kind));
    if (!request.onsuccess) transaction.commit?.(); // a page that is being closed runs no further task
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error ?? request.error);
  });
}

/** @param {Kind} kind @returns {Promise<any[]>} */
export const all = (kind) => asked(kind, "readonly", (store) => store.getAll(), (map) => [...map.values()]);

/** @param {Kind} kind @returns {Promise<string[]>} */
export const keys = (kind) => asked(kind, "readonly", (store) => store.getAllKeys(), (map) => [...map.keys()]);

/** @param {Kind} kind @param {string} key */
export const get = (kind, key) => asked(kind, "readonly", (store) => store.get(key), (map) => map.get(key));

/** @param {Kind} kind @param {string} key @param {any} value */
export const put = (kind, key, value) =>
  asked(kind, "readwrite", (store) => store.put(value, key), (map) => map.set(key, value));

/** @param {Kind} kind @param {string} key */
export const remove = (kind, key) => asked(kind, "readwrite", (store) => store.delete(key), (map) => map.delete(key));

/**
 * Replace a value by what `changed` returns for it, in one transaction; if that is nothing, leave it.
 *
 * @param {Kind} kind
 * @param {string} key
 * @param {(value: any) => any} changed
 */
export const change = (kind, key, changed) => asked(kind, "readwrite", (store) => {
  const request = store.get(key);
  request.onsuccess = () => {
    const value = changed(request.result);
    if (value) store.put(value, key);
  };
  return request;
}, (map) => {
  const value = changed(map.get(key));
  if (value) map.set(key, value);
});
